from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import SpecError
from shipctl.spec import LoadedSpec, load_spec


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def second() -> float:
    """The CPU seconds that a hostile input may take.

    It is done in half a second on an idle machine. A busy one shares its caches and its clock, so that CPU time grows
    as well, and measuring the coverage makes everything slower.
    """
    traced = sys.gettrace() is not None or (
        sys.version_info >= (3, 12) and sys.monitoring.get_tool(sys.monitoring.COVERAGE_ID) is not None
    )
    return 10.0 if traced else 2.0


@pytest.fixture
def load(in_folder: Path) -> Callable[..., LoadedSpec]:
    """Load a spec from its text; further files by name."""

    def load_text(text: str, files: dict[str, str] | None = None, **arguments: Any) -> LoadedSpec:
        for name, content in {**(files or {}), "s.yaml": text}.items():
            (in_folder / name).parent.mkdir(exist_ok=True)
            (in_folder / name).write_text(content, encoding="utf-8")
        return load_spec("s.yaml", **arguments)

    return load_text


@pytest.fixture
def fault(load: Callable[..., LoadedSpec]) -> Callable[..., str]:
    """Load a spec that is wrong and return the message."""

    def fault_of(text: str, files: dict[str, str] | None = None, **arguments: Any) -> str:
        with pytest.raises(SpecError) as caught:
            load(text, files, **arguments)
        return str(caught.value)

    return fault_of
