"""`shipctl stages describe` leaves no option without a word, however deep it lies."""

from __future__ import annotations

import pytest

from support_cli import Call


@pytest.mark.parametrize("arguments", [(), ("--markdown",)], ids=["text", "markdown"])
def test_groups_of_options_are_described_below(call: Call, arguments: tuple[str, ...]) -> None:
    said = call("stages", "describe", "canary", *arguments).stdout
    places = [
        said.index(f"{title}\n" if arguments else f"{title}:\n") for title in ("Replay", "SetWeight", "Pause")
    ]
    options, groups = said[: places[0]], said[places[0] :]
    assert "errorTolerance" in options
    assert "Percent of the requests." in groups
    assert places == sorted(places)
    assert said.count("Percent of the requests.") == 1


def test_an_option_of_a_group_says_what_it_is_by_default(call: Call) -> None:
    said = call("stages", "describe", "int4", "--markdown").stdout
    assert "| `scoring` | ScoringOptions |" in said
    _, _, group = said.partition("### ScoringOptions")
    assert "| `threshold` | number | `0.5` |" in group
    assert "### ScoringOptions" not in group
