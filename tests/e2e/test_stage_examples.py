"""The specs of specs/stages, each of which shows one stage: they all run, and no stage is without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from shipctl.stages.registry import Registry
from support_in_process import in_process
from support_specs import copy_specs

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.stem for path in (ROOT / "specs" / "stages").glob("*.yaml"))
SHOWN = ("validate", "convert", "optimize", "qualify", "triton")
"""Folders of plugins whose stages have an example here; the others are shown by the larger specs."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with all specs: what several of them make, such as the export, is made once."""
    made = tmp_path_factory.mktemp("examples")
    (made / ".git").mkdir()
    copy_specs(made / "specs")
    return made


def test_every_stage_that_makes_or_measures_has_an_example() -> None:
    registry = Registry()
    places = {name: registry.find(name).value.split(":")[0].split(".") for name in registry.names()}
    wanted = {name for name, parts in places.items() if parts[0] == "shipctl_plugins" and parts[1] in SHOWN}
    assert wanted - set(EXAMPLES) == set()


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", EXAMPLES)
def test_it_runs(folder: Path, name: str) -> None:
    spec = f"specs/stages/{name}.yaml"
    assert f"uses: {name}" in (folder / spec).read_text(), "it does not show the stage that it is named after"
    done = in_process(
        folder, "apply", "-j", "1", spec
    )  # one worker imports the framework, and not two at a time
    if done.exit_code:
        planned = in_process(folder, "plan", spec).lines
        missing = [line for line in planned if line.startswith("missing")]
        if missing:
            pytest.skip(missing[0])
    assert done.exit_code == 0, done
