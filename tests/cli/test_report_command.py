from __future__ import annotations

import re

from shipctl.testing.fixtures import SampleProject
from support_cli import RELEASING, Call


def test_report_of_the_latest_run(light: SampleProject, call: Call) -> None:
    light.write({"spec.yaml": RELEASING})
    call("apply", "spec.yaml")
    result = call("report")
    assert result.exit_code == 0
    name = result.stdout.removeprefix("written to ").strip()
    assert re.fullmatch(r"report-\d{8}-\d{6}-\w+\.html", name)
    page = (light.root / name).read_text()
    assert page.startswith("<!doctype html>")
    assert "1.0.0 is on the shelf" in page


def test_report_json_has_everything_and_writes_no_page(light: SampleProject, call: Call) -> None:
    light.write({"spec.yaml": RELEASING})
    run = call("apply", "spec.yaml", "--json", "-q").document["run"]
    report = call("report", run[:-2], "--json").document["report"]
    assert report["run"]["id"] == run
    assert [(stage["node"], stage["status"]) for stage in report["stages"]] == [
        ("copy", "done"),
        ("score", "done"),
        ("release", "done"),
    ]
    assert [
        (line["node"], line["verdict"]["outcome"], line["verdict"]["value"]) for line in report["gates"]
    ] == [("score", "pass", 0.9)]
    (measurement,) = report["measurements"]
    assert (measurement["title"], measurement["subject_node"], measurement["metrics"]) == (
        "Score",
        "copy",
        {"score": 0.9},
    )
    assert [(item["node"], item["kind"]) for item in report["artifacts"]] == [("copy", "dataset")]
    assert report["steps"][-1]["phase"] == "done"
    assert not list(light.root.glob("*.html"))


def test_report_before_anything_ran(project: SampleProject, call: Call) -> None:
    assert call("report").stderr == (
        f"error: nothing has run in {project.root} yet; begin with `shipctl apply SPEC`\n"
    )


def test_report_of_an_unknown_or_ambiguous_run(light: SampleProject, call: Call) -> None:
    call("apply", "spec.yaml")
    call("apply", "spec.yaml")
    assert (
        call("report", "nope").stderr
        == "error: no run 'nope' is in the journal; `shipctl history` lists them\n"
    )
    assert call("report", "2").stderr.startswith("error: 2 runs begin with '2': ")


def test_report_that_cannot_be_written(light: SampleProject, call: Call) -> None:
    call("apply", "spec.yaml")
    assert (
        call("report", "-o", "no/page.html").stderr
        == "error: cannot write no/page.html: No such file or directory\n"
    )
