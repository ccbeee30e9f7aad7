"""`status`, `history`, `rollback` and `down`."""

from __future__ import annotations

import re

import pytest

from shipctl.testing.fixtures import SampleProject
from support_cli import RELEASING, Call


@pytest.fixture
def released(light: SampleProject, call: Call) -> SampleProject:
    """A project with two releases, 1.0.0 and then 1.1.0."""
    light.write({"spec.yaml": RELEASING})
    assert call("apply", "spec.yaml").exit_code == 0
    light.write(
        {
            "spec.yaml": RELEASING.replace("1.0.0", "1.1.0").replace(
                "light-copy", "light-copy\n    with: {level: 2}"
            )
        }
    )
    assert call("apply", "spec.yaml").exit_code == 0
    return light


def test_status_says_what_serves_since_when_from_which_digest(released: SampleProject, call: Call) -> None:
    lines = call("status").lines
    assert lines[0] == "release on shelf: light 1.1.0, healthy"
    assert re.fullmatch(r"  revision  [0-9a-f]{64}", lines[1])
    assert re.fullmatch(r"  since     \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(.+\)", lines[2])
    assert lines[3] == "  http      http://127.0.0.1:1"
    assert lines[4:] == ["  traffic   100 %"]
    document = call("status", "--json").document
    assert document["schema"] == "shipctl.status/1"
    assert document["targets"][0]["serving"][0]["details"]["pids"] == "17, 18"
    (target,) = document["targets"]
    assert (target["stage"], target["target"], target["problem"]) == ("release", "shelf", None)
    assert target["serving"][0]["version"] == "1.1.0"
    assert target["last"]["serves"] is True


def test_status_shows_processes_logs_and_metrics_with_v(released: SampleProject, call: Call) -> None:
    assert call("status", "-v").lines[4:] == [
        "  metrics/0  http://127.0.0.1:2/metrics",
        "  traffic    100 %",
        "  pids       17, 18",
        "  logs       /var/log/shelf",
    ]
    assert "pids" not in "".join(call("status", "--watch").lines)


def test_status_before_anything_was_released(light: SampleProject, call: Call) -> None:
    light.write({"spec.yaml": RELEASING})
    assert call("status").lines == ["release on shelf: nothing serves"]


def test_status_of_a_spec_without_a_release(light: SampleProject, call: Call) -> None:
    result = call("status")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: spec.yaml has no release stage, so nothing of it serves anywhere\n",
    )


def test_history_lists_releases_and_runs_newest_first(released: SampleProject, call: Call) -> None:
    lines = call("history").lines
    assert lines[0] == "releases:"
    assert re.match(r"    2  .* serves       1\.1\.0  [0-9a-f]{12}  release on shelf by ", lines[1])
    assert re.match(r"    1  .* done         1\.0\.0  ", lines[2])
    assert lines[3] == "runs:"
    assert len(lines) == 6
    document = call("history", "--json", "--limit", "1").document
    assert [(item["number"], item["serves"]) for item in document["releases"]] == [(2, True)]
    assert [item["version"] for item in document["runs"]] == ["1.1.0"]


def test_history_before_anything_ran(light: SampleProject, call: Call) -> None:
    assert call("history").lines == ["nothing has run yet; begin with `shipctl apply`"]


def test_rollback_serves_the_version_before(released: SampleProject, call: Call) -> None:
    result = call("rollback")
    assert (result.exit_code, result.stderr) == (0, "")
    assert call("status", "--json").document["targets"][0]["serving"][0]["version"] == "1.0.0"
    lines = call("history").lines
    assert "(rollback)" in lines[1]
    assert " rolled-back  1.1.0 " in lines[2]


def test_rollback_to_what_is_not_there(released: SampleProject, call: Call) -> None:
    result = call("rollback", "--to", "9.9.9")
    assert result.exit_code == 2
    assert "no release '9.9.9' to roll back to" in result.stderr
    assert "1.0.0 (" in result.stderr


def test_down_stops_what_runs_and_says_so(released: SampleProject, call: Call) -> None:
    assert call("down").lines == ["the shelf was emptied"]
    assert call("down").lines == ["nothing runs"]
    assert call("down", "--json").document == {"schema": "shipctl.down/1", "stopped": []}
