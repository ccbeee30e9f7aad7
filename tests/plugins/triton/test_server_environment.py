"""Where the server's environment can be made, and what is said where it cannot."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from shipctl.engine.environments import Environment
from shipctl.errors import StageError, UnavailableError
from shipctl_plugins._triton import environment
from shipctl_plugins._triton.environment import ensure_server_environment, find_server_python


def test_other_systems_are_told_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(UnavailableError) as caught:
        find_server_python()
    assert str(caught.value) == (
        "the local Triton server exists for Linux on x86_64 only, not for Darwin on arm64; everything up to the Triton "
        "repository works: run with `--until` and the stage before this one"
    )


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="elsewhere the machine is refused before its Python is looked at",
)
def test_too_new_python_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: "3.13.0")
    monkeypatch.setattr(environment, "find_python", lambda *args, **kwargs: None)
    with pytest.raises(UnavailableError) as caught:
        find_server_python()
    assert str(caught.value) == (
        "the local Triton server needs Python 3.8 to 3.12 (with venv, ensurepip and libpython) beside Python 3.13.0 "
        "that runs shipctl, because it needs numpy < 2; install one of them (on Debian and Ubuntu: python3-venv and "
        "libpython3-dev) or everything up to the Triton repository works: run with `--until` and the stage before "
        "this one"
    )


def test_runtime_falls_back_where_ours_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def ensure(
        name: str, requirements: Sequence[str], *, python: Path, progress: Callable[[str], None]
    ) -> Environment:
        asked.append(list(requirements))
        if len(asked) == 1:
            message = "no such version"
            raise StageError(message)
        return Environment(tmp_path, tmp_path / "bin" / "python", "k")

    monkeypatch.setattr(environment, "find_server_python", lambda: Path(sys.executable))
    monkeypatch.setattr(environment, "_installed_onnxruntime", lambda: "1.99.0")
    monkeypatch.setattr(environment, "ensure_environment", ensure)
    said: list[str] = []
    with pytest.raises(
        StageError, match=f"the environment {tmp_path} is damaged: remove that folder and run again"
    ):
        ensure_server_environment(said.append)
    assert asked == [
        ["nvidia-pytriton==0.7.0", "onnxruntime==1.99.0", "numpy<2"],
        ["nvidia-pytriton==0.7.0", "onnxruntime==1.31.1", "numpy<2"],
    ]
    assert said == ["onnxruntime 1.99.0 cannot be installed beside the server, using 1.31.1"]
