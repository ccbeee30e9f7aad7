from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from shipctl.testing.fixtures import SampleProject
from support_cli import Call, install

BROKEN = """
[shipctl.stages]
broken-import = no_such_module_at_all:Stage
bare = bare_stages:Bare
"""

BARE = """
import numpy
from shipctl import Artifact, Stage, StageInputs, StageOptions, StageOutputs

class Options(StageOptions):
    size: int = 1

class Inputs(StageInputs):
    pass

class Outputs(StageOutputs):
    pass

class Bare(Stage[Options, Inputs, Outputs]):
    api_version = 1
    subject = "model"
    metrics = ("size",)

    def run(self, inputs, ctx): ...
"""


@pytest.fixture
def bad_plugins(light_stages: Path, tmp_path: Path) -> None:
    """Install a plugin that does not import and one that says nothing about itself."""
    install(light_stages, "bare_stages", BARE, BROKEN)


def test_list_says_what_each_is(project: SampleProject, call: Call) -> None:
    lines = call("stages", "list").lines
    names = [line.split()[0] for line in lines]
    assert names == sorted(names)
    assert len({line.index(line.split(maxsplit=1)[1]) for line in lines}) == 1, "no columns"
    said = [" ".join(line.split()) for line in lines]
    assert "light-copy transform Copy a data set. [light-stages 1.0]" in said
    assert "light-release release Put a data set on a shelf. [light-stages 1.0]" in said
    assert any(line.startswith("benchmark check Measure latency") for line in said)


def test_a_broken_plugin_hides_no_other(project: SampleProject, call: Call, bad_plugins: None) -> None:
    result = call("stages", "list")
    assert result.exit_code == 0
    assert (
        "broken-import broken stage 'broken-import' of bare-stages 1.0 (no_such_module_at_all:Stage) does not "
        "import: ModuleNotFoundError: No module named 'no_such_module_at_all' [bare-stages 1.0]"
    ) in [" ".join(line.split()) for line in result.lines]
    assert any(line.startswith("light-copy ") for line in result.lines)


@pytest.mark.slow
def test_check_names_what_is_wrong_and_exits_with_3(
    project: SampleProject, call: Call, bad_plugins: None
) -> None:
    result = call("stages", "check")
    assert result.exit_code == 3
    bare = [line.removeprefix("broken bare: ") for line in result.lines if line.startswith("broken bare: ")]
    assert bare == [
        "it has no docstring; its first line is what `shipctl stages list` shows",
        "option 'size' has no description",
        "it declares no output, so nothing could ever come of it",
        "subject 'model' is none of its inputs (none)",
        "it declares metrics but no output that is a Report",
        "importing it imports numpy; import frameworks inside functions",
    ]
    assert "ok     light-copy" in result.lines
    others = [
        line for line in result.lines if not line.startswith(("broken bare: ", "broken broken-import: "))
    ]
    assert [line for line in others if not line.startswith("ok     ")] == [], "all others pass their check"
    assert result.stderr.endswith("stages are broken: bare, broken-import\n")


def test_check_of_one_stage(project: SampleProject, call: Call, bad_plugins: None) -> None:
    assert call("stages", "check", "light-copy").lines == ["ok     light-copy"]
    quiet = call("stages", "check", "light-copy", "-q")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")
    result = call("stages", "check", "broken-import", "--json")
    assert result.exit_code == 3
    assert result.document["stages"][0]["kind"] == "broken"


def test_the_group_alone_shows_its_help(project: SampleProject, call: Call) -> None:
    result = call("stages")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "\n  new       Write a new stage as a distribution of its own.\n" in result.stdout
    assert (
        call("stages", "nonsense").stderr
        == "error: no such command 'nonsense'\nsee `shipctl stages --help`\n"
    )


def test_unknown_stage_names_its_neighbour(project: SampleProject, call: Call) -> None:
    for command in ("check", "describe"):
        result = call("stages", command, "light-cpy")
        assert (result.exit_code, result.stderr) == (
            2,
            "error: no stage named 'light-cpy' is installed; did you mean 'light-copy'?\n",
        )


def test_describe_shows_inputs_outputs_and_options(project: SampleProject, call: Call) -> None:
    assert call("stages", "describe", "light-score").stdout == (
        "light-score  (check, light-stages 1.0)\n"
        "\n"
        "Score a data set.\n"
        "\n"
        "inputs:\n"
        "  samples  dataset\n"
        "\n"
        "outputs:\n"
        "  report  report\n"
        "\n"
        "options:\n"
        "  score: number, default 0.9\n"
        "      What is measured.\n"
        "  min_score: number, default 0.5\n"
        "      The smallest score that passes.\n"
        "\n"
        "metrics:\n"
        "  score\n"
    )


def test_describe_as_json_has_the_schema_of_the_options(project: SampleProject, call: Call) -> None:
    document = call("stages", "describe", "int8-calibration", "--json").document
    assert document["schema"] == "shipctl.stage/1"
    assert document["stage"]["name"] == "int8-calibration"
    assert document["options"]["properties"]["method"]
    assert document["requires"]


def test_new_writes_nothing_over_what_exists(project: SampleProject, call: Call) -> None:
    assert call("stages", "new", "my-stage", "--directory", "here").exit_code == 0
    (project.root / "here" / "README.md").write_text("mine")
    result = call("stages", "new", "my-stage", "--directory", "here")
    assert result.exit_code == 2
    assert result.stderr.endswith("exist already; nothing was written, --force overwrites\n")
    assert (project.root / "here" / "README.md").read_text() == "mine"
    assert call("stages", "new", "my-stage", "--directory", "here", "--force").exit_code == 0
    assert (project.root / "here" / "README.md").read_text() != "mine"


@pytest.mark.parametrize("name", ["My-Stage", "my_stage", "-x", "1st", "a--b", "a b"])
def test_new_refuses_what_is_no_name(project: SampleProject, call: Call, name: str) -> None:
    result = call("stages", "new", "--", name)
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: {name!r} is no name for a stage; use lower-case words with hyphens between them, such as my-stage\n",
    )
    assert list(project.root.iterdir()) == [project.root / ".shipctl"]


def test_new_refuses_the_name_of_an_installed_stage(project: SampleProject, call: Call) -> None:
    assert call("stages", "new", "select").stderr == (
        "error: a stage named 'select' is installed: `shipctl stages describe select`; choose another name\n"
    )


@pytest.mark.slow
def test_new_distribution_installs_and_passes_its_tests_at_once(project: SampleProject, call: Call) -> None:
    assert call("stages", "new", "my-stage").lines[-1] == "next: pip install -e my-stage && pytest my-stage"
    environment = project.root / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    # What this interpreter has installed (shipctl, pytest, hatchling), in an environment of its own.
    (site,) = (environment / "lib").glob("python*/site-packages")
    folders = [path for path in sys.path if path.endswith("site-packages")]
    (site / "base.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in folders))
    environ = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTEST_ADDOPTS"}}

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            [*map(str, command)],
            cwd=project.root,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install")
    run(*pip, "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--editable", "my-stage")
    assert "16 passed" in run(python, "-m", "pytest", "-p", "no:cacheprovider", "my-stage")
    listed = run(python, "-m", "shipctl.cli", "stages", "check", "my-stage")
    assert listed == "ok     my-stage\n"
