from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shipctl.testing.fixtures import SampleProject
from support_cli import RELEASING, SPEC, Call, install

SLEEPING = '''
import time
from shipctl import Dataset, NoOptions, Stage, StageInputs, StageOutputs

class Inputs(StageInputs):
    samples: Dataset

class Outputs(StageOutputs):
    samples: Dataset

class Sleeping(Stage[NoOptions, Inputs, Outputs]):
    """Sleep."""

    api_version = 1

    def run(self, inputs, ctx):
        time.sleep(60)
'''


def without_times(text: str) -> list[str]:
    """Return the lines with clock times, durations and run ids taken out."""
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in text.splitlines()]
    lines = [re.sub(r" in [0-9.]+(us|ms|s)\b", " in T", line) for line in lines]
    return [re.sub(r"run \d{8}-\d{6}-\w+", "run ID", line) for line in lines]


def test_apply_writes_plain_lines_where_there_is_no_terminal(light: SampleProject, call: Call) -> None:
    result = call("apply", "spec.yaml")
    assert (result.exit_code, result.stderr) == (0, "")
    assert without_times(result.stdout) == [
        "copy started",
        "copy done in T",
        "score started",
        "score done in T  score=0.9000  (1 gate passed)",
        "run ID finished in T: 2 done",
    ]


def test_apply_again_does_nothing(light: SampleProject, call: Call) -> None:
    call("apply", "spec.yaml")
    result = call("apply", "spec.yaml")
    assert without_times(result.stdout)[-1] == "run ID finished in T: 2 cached"


def test_verbose_shows_what_stages_log(light: SampleProject, call: Call) -> None:
    assert "copy | copying at level 1" in without_times(call("apply", "spec.yaml", "-v").stdout)


def test_quiet_says_only_what_went_wrong(light: SampleProject, call: Call) -> None:
    assert call("apply", "spec.yaml", "-q").stdout == ""
    light.write({"spec.yaml": SPEC.replace("uses: light-score", "uses: light-fail")})
    result = call("apply", "spec.yaml", "-q")
    assert result.exit_code == 1
    assert without_times(result.stdout) == ["score failed in T: the disk is made of cheese; use another one"]
    assert result.stderr == "error: score: the disk is made of cheese; use another one\n"


def test_a_gate_that_says_no_exits_with_4(light: SampleProject, call: Call) -> None:
    light.write({"spec.yaml": SPEC.replace("uses: light-score", "uses: light-score\n    with: {score: 0.1}")})
    result = call("apply", "spec.yaml")
    assert result.exit_code == 4
    assert "gate score/score fail: score 0.1 is not >= 0.5" in without_times(result.stdout)
    assert result.stderr.startswith("error: score: ")


def test_json_is_the_only_thing_on_stdout(light: SampleProject, call: Call) -> None:
    result = call("apply", "spec.yaml", "--json")
    document = result.document
    assert document["schema"] == "shipctl.run/1"
    assert document["exit_code"] == 0
    assert document["statuses"] == {"copy": "done", "score": "done"}
    assert "copy started" in without_times(result.stderr)


def test_json_of_a_failed_run_is_still_one_document(light: SampleProject, call: Call) -> None:
    light.write({"spec.yaml": SPEC.replace("uses: light-copy", "uses: light-fail")})
    result = call("apply", "spec.yaml", "--json", "-q")
    assert result.exit_code == 1
    assert result.document["exit_code"] == 1
    assert result.document["statuses"] == {"copy": "failed", "score": "blocked"}


def test_events_are_appended_as_json_lines(light: SampleProject, call: Call) -> None:
    call("apply", "spec.yaml", "--events", "events.jsonl", "-q")
    call("apply", "spec.yaml", "--events", "events.jsonl", "-q")
    events = [json.loads(line) for line in (light.root / "events.jsonl").read_text().splitlines()]
    names = [event["event"] for event in events]
    assert names[0] == "plan_ready"
    assert names.count("run_finished") == 2
    assert {"stage_started", "stage_finished", "gate_decided", "stage_logged"} <= set(names)


def test_events_that_cannot_be_written(light: SampleProject, call: Call) -> None:
    result = call("apply", "spec.yaml", "--events", "no/such/folder/events.jsonl")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: cannot write events to no/such/folder/events.jsonl: No such file or directory\n",
    )


def test_until_stops_after_a_stage(light: SampleProject, call: Call) -> None:
    assert call("apply", "spec.yaml", "--until", "copy", "--json").document["statuses"] == {"copy": "done"}


def test_an_unavailable_stage_stops_before_anything_ran(light: SampleProject, call: Call) -> None:
    light.write({"spec.yaml": f"{SPEC}  - {{id: hard, uses: light-missing, needs: copy}}\n"})
    result = call("apply", "spec.yaml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: hard: needs a quantum computer: buy one\n"
        "up to 'score' it works here: shipctl apply spec.yaml --until score\n"
    )
    assert call("apply", "spec.yaml", "--until", "score").exit_code == 0


def test_unknown_display_names_those_there_are(light: SampleProject, call: Call) -> None:
    result = call("apply", "spec.yaml", "--display", "consle")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: no display named 'consle' is installed; did you mean 'console'?\n",
    )


@pytest.mark.parametrize("display", ["console", "log", "events"])
def test_any_display_can_be_asked_for(light: SampleProject, call: Call, display: str) -> None:
    result = call("apply", "spec.yaml", "--display", display)
    assert result.exit_code == 0
    assert "copy" in result.stdout
    assert "\x1b" not in result.stdout


def test_release_is_shown_step_by_step(light: SampleProject, call: Call) -> None:
    light.write({"spec.yaml": RELEASING})
    lines = without_times(call("apply", "spec.yaml").stdout)
    assert "release done on shelf: 1.0.0 is on the shelf" in lines
    assert (
        without_times(call("apply", "spec.yaml").stdout)[-1] == "run ID finished in T: 2 cached, 1 in-place"
    )


def test_interrupted_by_ctrl_c(light: SampleProject, light_stages: Path) -> None:
    install(light_stages, "sleeping", SLEEPING, "[shipctl.stages]\nsleeping = sleeping:Sleeping\n")
    light.write({"spec.yaml": SPEC.replace("uses: light-copy", "uses: sleeping")})
    process = subprocess.Popen(
        [sys.executable, "-m", "shipctl.cli", "apply", "spec.yaml"],
        cwd=light.root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().endswith(" copy started\n")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "copy interrupted" in stdout
    assert stderr.startswith("error: ")
    assert "Traceback" not in stderr
