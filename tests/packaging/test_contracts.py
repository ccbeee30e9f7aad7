"""The import contracts in pyproject.toml cover every plugin that there is."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRACTS: dict[str, dict[str, Any]] = {
    contract["id"]: contract for contract in PYPROJECT["tool"]["importlinter"]["contracts"]
}


def packages(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("*/__init__.py")}


def test_every_plugin_folder_is_kept_apart_from_the_others() -> None:
    public = {name for name in packages(ROOT / "plugins/shipctl_plugins") if not name.startswith("_")}
    assert set(CONTRACTS["plugin-folders"]["modules"]) == {f"shipctl_plugins.{name}" for name in public}


def test_every_helper_package_is_kept_below_the_plugins() -> None:
    private = {name for name in packages(ROOT / "plugins/shipctl_plugins") if name.startswith("_")}
    assert set(CONTRACTS["plugin-helpers"]["source_modules"]) == {
        f"shipctl_plugins.{name}" for name in private
    }
    assert set(CONTRACTS["plugin-helpers"]["forbidden_modules"]) == set(
        CONTRACTS["plugin-folders"]["modules"]
    )


def test_every_stage_is_kept_apart_from_the_others() -> None:
    groups = PYPROJECT["project"]["entry-points"]
    modules = {value.partition(":")[0] for group in groups.values() for value in group.values()}
    assert set(CONTRACTS["plugins"]["modules"]) == modules


def test_each_source_folder_holds_exactly_one_package() -> None:
    for folder in PYPROJECT["tool"]["hatch"]["build"]["dev-mode-dirs"]:
        assert len(packages(ROOT / folder)) == 1, folder
