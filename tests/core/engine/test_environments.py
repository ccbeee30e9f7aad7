"""Cached environments: made once, rebuilt when half-made, clear when they cannot be made."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from shipctl.engine import environments
from shipctl.engine.environments import Interpreter, ensure_environment, environment_key, find_python, probe
from shipctl.errors import StageError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHIPCTL_CACHE_DIR", str(tmp_path / "cache"))
    probe.cache_clear()
    return tmp_path / "cache"


def write_wheel(path: Path) -> None:
    """Write a wheel that pip installs without a network."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tinywheel.py", "ANSWER = 42\n")
        archive.writestr(
            "tinywheel-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinywheel\nVersion: 1.0\n"
        )
        archive.writestr(
            "tinywheel-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tinywheel-1.0.dist-info/RECORD", "tinywheel.py,,\n")


def fake_interpreter(path: Path, answer: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{answer}\n")
    path.chmod(0o755)
    return path


def saying(version: str, libpython: str | None = None) -> str:
    document = json.dumps({"version": version, "abi": "x", "machine": "x86_64", "libpython": libpython})
    return f"echo '{document}'"


@pytest.mark.slow
def test_environment_is_made_once_and_found_again_and_one_that_failed_half_made_is_built_again(
    cache: Path, tmp_path: Path
) -> None:
    """One after the other, because making an environment costs seconds: pip fails, then two build what it left."""
    missing = tmp_path / "tinywheel-1.0-py3-none-any.whl"
    with pytest.raises(StageError) as caught:
        ensure_environment("tiny", [str(missing)], progress=lambda line: None)
    folder = next(path for path in (cache / "environments").iterdir() if path.is_dir())
    first, *tail, last = str(caught.value).splitlines()
    assert first == (
        f"the environment {folder.name} could not be created: `{folder}/bin/python -m pip "
        f"--disable-pip-version-check --no-input install {missing}` ended with 1"
    )
    assert any("tinywheel-1.0-py3-none-any.whl" in line for line in tail)
    assert (
        last
        == f"the whole output is in {folder}.log; check the network and the package index, then run again"
    )
    assert not (folder / "complete.json").exists()

    write_wheel(missing)
    (folder / "left-over").touch()
    said: list[str] = []
    threads = [
        threading.Thread(
            target=ensure_environment, args=("tiny", [str(missing)]), kwargs={"progress": said.append}
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not (folder / "left-over").exists()
    assert sorted(said) == [
        "creating the environment tiny (once, about 1 minute)",
        "waiting for another process that is creating the environment tiny",
    ]

    said.clear()
    made = ensure_environment("tiny", [str(missing)], progress=said.append)
    assert ensure_environment("tiny", [str(missing)], progress=said.append) == made
    assert said == []
    assert made.path == folder == cache / "environments" / f"tiny-{made.key[:12]}"
    answer = subprocess.run(
        [made.python, "-c", "import tinywheel; print(tinywheel.ANSWER)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == "42\n"


def test_interpreter_that_makes_no_environments_is_named(tmp_path: Path) -> None:
    shim = fake_interpreter(tmp_path / "bin" / "python3.11", "echo 'pyenv: not found' >&2; exit 127")
    with pytest.raises(StageError) as caught:
        ensure_environment("tiny", [], python=shim, progress=lambda line: None)
    assert str(caught.value) == (
        f"{shim} cannot make virtual environments: install its venv and ensurepip modules "
        "(on Debian and Ubuntu the package python3-venv)"
    )


def test_running_interpreter_comes_first() -> None:
    assert find_python((3, 8), (3, 99)) == Path(sys.executable)


def test_shims_that_do_not_run_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_interpreter(tmp_path / "shims" / "python3.9", "exit 127")
    good = fake_interpreter(tmp_path / "bin" / "python3.9", saying("3.9.1"))
    fake_interpreter(tmp_path / "bin" / "python3.8", saying("3.8.1"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}:{tmp_path / 'bin'}")
    assert find_python((3, 8), (3, 10)) == good


def test_interpreter_without_shared_library_is_passed_over_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_interpreter(tmp_path / "python3.9", saying("3.9.1"))
    good = fake_interpreter(tmp_path / "python3.8", saying("3.8.1", "/lib/libpython3.8.so"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_python((3, 8), (3, 10), shared_library=True) == good


def test_no_interpreter_in_range_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert find_python((3, 1), (3, 2)) is None


def test_key_depends_on_requirements_and_interpreter_but_not_on_order() -> None:
    here = Interpreter("3.11.7", "cpython-311", "x86_64", None)
    other = Interpreter("3.12.1", "cpython-312", "x86_64", None)
    assert here.minor == (3, 11)
    assert environment_key(["a", "b"], here) == environment_key(["b", "a"], here)
    assert (
        len({environment_key(["a"], here), environment_key(["a==1"], here), environment_key(["a"], other)})
        == 3
    )


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert environments.cache_home() == tmp_path / "cache"
    monkeypatch.delenv("SHIPCTL_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert environments.cache_home() == tmp_path / "xdg" / "shipctl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert environments.cache_home() == Path.home() / ".cache" / "shipctl"
