"""Cached virtual environments, for what cannot live in the environment that shipctl itself runs in.

An environment is made once per set of requirements and interpreter, and shared by every project of the user.
The scripts of a virtual environment hold absolute paths, so it cannot be built aside and renamed into place:
it is built where it will live, under a lock, and a marker written last says that it is whole. One that lacks
the marker (its maker was killed, the disk was full) is thrown away and built again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from shipctl.errors import StageError

Version = tuple[int, int]

_MARKER = "complete.json"
_LOG_LINES_SHOWN = 15
_PROBE_TIMEOUT_S = 20.0
_LOCK_POLL_S = 0.2

# Runs in any interpreter from 3.8 on. It imports what making an environment takes: Debian splits these off.
_PROBE = """
import ensurepip, json, os, platform, sys, sysconfig, venv
name = sysconfig.get_config_var("INSTSONAME") or ""
folders = [sysconfig.get_config_var("LIBDIR") or "", os.path.join(sys.base_prefix, "lib")]
libraries = [os.path.join(f, name) for f in folders if f and ".so" in name and os.path.exists(os.path.join(f, name))]
print(json.dumps({"version": platform.python_version(), "abi": sysconfig.get_config_var("SOABI") or "",
                  "machine": platform.machine(), "libpython": libraries[0] if libraries else None}))
"""

# The kernel ends pip together with shipctl: prctl(PR_SET_PDEATHSIG, SIGKILL), then exec.
_DIE_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
)


@dataclass(frozen=True)
class Environment:
    """A complete virtual environment."""

    path: Path
    """Its folder."""
    python: Path
    """Its interpreter."""
    key: str
    """SHA-256 (hex) of its requirements and of the interpreter that it was made for."""


@dataclass(frozen=True)
class Interpreter:
    """What an interpreter says about itself when it is run."""

    version: str
    abi: str
    machine: str
    libpython: Path | None
    """Its shared library, which programs that embed Python load; None for a static build."""

    @property
    def minor(self) -> Version:
        """Major and minor version, such as ``(3, 11)``."""
        major, minor, *_ = self.version.split(".")
        return int(major), int(minor)


def cache_home() -> Path:
    """Return the folder of the user's shipctl cache: ``$SHIPCTL_CACHE_DIR``, else the XDG cache folder."""
    if chosen := os.environ.get("SHIPCTL_CACHE_DIR"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "shipctl"


@cache
def probe(python: Path) -> Interpreter | None:
    """Run ``python`` and return what it is, or None when it does not run or cannot make environments.

    It is really run because version managers put shims on PATH for versions that are not installed.
    """
    command = [str(python), "-I", "-c", _PROBE]
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=True,
            env=_clean_environ(),
        )
        said = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    libpython = said.pop("libpython")
    return Interpreter(**said, libpython=Path(libpython) if libpython else None)


def find_python(minimum: Version, maximum: Version, *, shared_library: bool = False) -> Path | None:
    """Return an interpreter whose version lies in ``minimum``..``maximum`` (both included), or None.

    The running interpreter comes first, then every ``python3.x`` on PATH, newest first. With
    ``shared_library`` it must come with a libpython, as programs that embed Python need it.
    """
    candidates = [Path(sys.executable)]
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    for minor in range(maximum[1], minimum[1] - 1, -1):
        candidates += [folder / f"python{minimum[0]}.{minor}" for folder in folders]
    for candidate in candidates:
        if not candidate.is_file():
            continue
        found = probe(candidate)
        if found and minimum <= found.minor <= maximum and (found.libpython or not shared_library):
            return candidate
    return None


def environment_key(requirements: Sequence[str], interpreter: Interpreter) -> str:
    """Return the SHA-256 (hex) under which an environment is cached."""
    identity = [sorted(requirements), interpreter.version, interpreter.abi, interpreter.machine, sys.platform]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def ensure_environment(
    name: str,
    requirements: Sequence[str],
    *,
    python: Path | None = None,
    progress: Callable[[str], None],
) -> Environment:
    """Return the cached environment for ``requirements``, making it first where it does not exist.

    ``python`` is the interpreter to make it with, the running one by default. Several processes may ask at
    once: one makes it, the others wait. Raises ``StageError`` with the end of pip's output when it fails.
    """
    base = python or Path(sys.executable)
    environment = _environment(name, requirements, base)
    folder = environment.path
    if _is_complete(environment):
        return environment
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_name(f".{folder.name}.lock"), name, progress) as lock_fd:
        if not _is_complete(environment):  # it may have been made while we waited
            progress(f"creating the environment {name} (once, about 1 minute)")
            _create(environment, requirements, base, lock_fd)
    return environment


def existing_environment(name: str, requirements: Sequence[str]) -> Environment | None:
    """Return the cached environment of the running interpreter for ``requirements``; None where none was made."""
    environment = _environment(name, requirements, Path(sys.executable))
    return environment if _is_complete(environment) else None


def _environment(name: str, requirements: Sequence[str], base: Path) -> Environment:
    """Return where the environment is, or would be.

    :raises StageError: if ``base`` cannot make one
    """
    interpreter = probe(base)
    if interpreter is None:
        msg = (
            f"{base} cannot make virtual environments: install its venv and ensurepip modules "
            "(on Debian and Ubuntu the package python3-venv)"
        )
        raise StageError(msg)
    key = environment_key(requirements, interpreter)
    folder = cache_home() / "environments" / f"{name}-{key[:12]}"
    return Environment(folder, folder / "bin" / "python", key)


def _is_complete(environment: Environment) -> bool:
    """Whether the environment is whole and its interpreter (a link) still exists."""
    return (environment.path / _MARKER).is_file() and environment.python.exists()


def _create(environment: Environment, requirements: Sequence[str], base: Path, lock_fd: int) -> None:
    shutil.rmtree(environment.path, ignore_errors=True)
    log = environment.path.with_name(f"{environment.path.name}.log")
    log.unlink(missing_ok=True)
    _run([str(base), "-I", "-m", "venv", str(environment.path)], log, lock_fd, environment)
    if requirements:
        pip = [str(environment.python), "-m", "pip", "--disable-pip-version-check", "--no-input"]
        _run([*pip, "install", *requirements], log, lock_fd, environment)
    marker = environment.path / _MARKER
    text = json.dumps(
        {"requirements": list(requirements), "python": platform.python_version(), "at": time.time()}
    )
    marker.with_suffix(".new").write_text(text)
    marker.with_suffix(".new").replace(marker)


def _run(command: list[str], log: Path, lock_fd: int, environment: Environment) -> None:
    """Run one command of the making; its output goes to ``log``."""
    started = command
    if sys.platform == "linux":
        started = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, *command]
    with log.open("ab") as output:
        # The lock's descriptor goes along, so that nobody builds here while one of ours still writes.
        done = subprocess.run(
            started,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(lock_fd,),
            env=_clean_environ(),
            check=False,
            start_new_session=True,  # Ctrl-C is shipctl's to act on; pip ends with it
        )
    if done.returncode != 0:
        tail = log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
        msg = (
            f"the environment {environment.path.name} could not be created: `{' '.join(command)}` "
            f"ended with {done.returncode}\n"
            + "".join(f"    {line}\n" for line in tail)
            + f"the whole output is in {log}; check the network and the package index, then run again"
        )
        raise StageError(msg)


def _clean_environ() -> dict[str, str]:
    """Return our environment variables without those that would lead another interpreter astray."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in {"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "__PYVENV_LAUNCHER__", "PIP_TARGET"}
    }


@contextmanager
def _lock(path: Path, name: str, progress: Callable[[str], None]) -> Iterator[int]:
    """Hold the lock file ``path``; the kernel gives it up when its last holder ends, however it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        waited = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waited:
                    progress(f"waiting for another process that is creating the environment {name}")
                waited = True
                time.sleep(_LOCK_POLL_S)
        yield descriptor
    finally:
        os.close(descriptor)
