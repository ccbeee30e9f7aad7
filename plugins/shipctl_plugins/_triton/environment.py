"""The environment that the Triton server runs in, and its backends folder.

The wheel `nvidia-pytriton` carries the `tritonserver` binary with its python backend. Both need numpy < 2 (with
numpy 2 the server comes up, says that it is ready, and answers with empty tensors), so they live in an
environment of their own. Beside the python backend we put `onnxruntime` as a python-based backend.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

from shipctl.engine.environments import Environment, ensure_environment, find_python, probe
from shipctl.errors import StageError, UnavailableError

TRITON_VERSION = "2.51.0"
WHEEL = "nvidia-pytriton==0.7.0"
ONNXRUNTIME_VERSION = "1.31.1"
"""Taken where shipctl itself has none installed, or one that the server's Python cannot have."""
PYTHON_RANGE = ((3, 8), (3, 12))
"""The wheel has stubs for these; numpy 1.26, the last below 2, has no wheels for 3.13."""
_LAYOUT = "1"


@dataclass(frozen=True)
class ServerEnvironment:
    """Where the parts of a runnable server are."""

    environment: Environment
    binary: Path
    libraries: tuple[Path, ...]
    """Folders for LD_LIBRARY_PATH: what auditwheel put aside, and the link to the interpreter's libpython."""
    backends: Path
    caches: Path
    onnxruntime: str
    """Version of the runtime that answers."""

    def environ(self) -> dict[str, str | None]:
        """Return the environment variables that the server needs otherwise than we have them; None removes one.

        The stub embeds Python and finds the environment only through the first `python3` on PATH.
        """
        return {
            **dict.fromkeys(("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "LD_PRELOAD")),
            "PATH": os.pathsep.join([str(self.environment.path / "bin"), os.environ.get("PATH", os.defpath)]),
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, self.libraries)),
            "VIRTUAL_ENV": str(self.environment.path),
            "PYTHONNOUSERSITE": "1",
        }


def find_server_python() -> Path:
    """Return the interpreter to make the server's environment with.

    :raises UnavailableError: where there is no wheel for this machine or no fitting interpreter
    """
    remedy = "everything up to the Triton repository works: run with `--until` and the stage before this one"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        message = (
            f"the local Triton server exists for Linux on x86_64 only, not for {platform.system()} on "
            f"{platform.machine()}; {remedy}"
        )
        raise UnavailableError(message)
    python = find_python(*PYTHON_RANGE, shared_library=True)
    if python is None:
        message = (
            "the local Triton server needs Python 3.8 to 3.12 (with venv, ensurepip and libpython) beside "
            f"Python {platform.python_version()} that runs shipctl, because it needs numpy < 2; install one of "
            f"them (on Debian and Ubuntu: python3-venv and libpython3-dev) or {remedy}"
        )
        raise UnavailableError(message)
    return python


def ensure_server_environment(progress: Callable[[str], None]) -> ServerEnvironment:
    """Return the server's environment, making it once.

    The runtime is the version that shipctl itself has, so that answers can be equal bit by bit; where that
    cannot be had for the server's Python, :data:`ONNXRUNTIME_VERSION`.

    :raises UnavailableError: see :func:`find_server_python`
    :raises StageError: if the environment cannot be made
    """
    python = find_server_python()
    name = f"triton-{TRITON_VERSION.rpartition('.')[0]}"
    wanted = _installed_onnxruntime() or ONNXRUNTIME_VERSION
    try:
        environment = ensure_environment(name, _requirements(wanted), python=python, progress=progress)
    except StageError:
        if wanted == ONNXRUNTIME_VERSION:
            raise
        progress(f"onnxruntime {wanted} cannot be installed beside the server, using {ONNXRUNTIME_VERSION}")
        wanted = ONNXRUNTIME_VERSION
        environment = ensure_environment(name, _requirements(wanted), python=python, progress=progress)
    return _assemble(environment, wanted)


def _requirements(onnxruntime: str) -> list[str]:
    return [WHEEL, f"onnxruntime=={onnxruntime}", "numpy<2"]


def _installed_onnxruntime() -> str | None:
    for distribution in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return version(distribution).partition("+")[0]
        except PackageNotFoundError:
            continue
    return None


def _assemble(environment: Environment, onnxruntime: str) -> ServerEnvironment:
    interpreter = probe(environment.python)
    site = next(iter(sorted(environment.path.glob("lib/python3*/site-packages"))), None)
    if interpreter is None or site is None or interpreter.libpython is None:
        message = f"the environment {environment.path} is damaged: remove that folder and run again"
        raise StageError(message)
    server = site / "pytriton" / "tritonserver"
    sources = files("shipctl_plugins._triton.backend")
    backend = sources.joinpath("onnxruntime_backend.py").read_bytes()
    digest = hashlib.sha256(_LAYOUT.encode() + backend).hexdigest()[:12]
    layout = environment.path / f"shipctl-{digest}"
    if not layout.is_dir():
        stub = (
            server
            / "python_backend_stubs"
            / "{}.{}".format(*interpreter.minor)
            / "triton_python_backend_stub"
        )
        _lay_out(layout, server, stub, interpreter.libpython, backend)
    return ServerEnvironment(
        environment=environment,
        binary=server / "bin" / "tritonserver",
        libraries=(site / "nvidia_pytriton.libs", layout / "lib"),
        backends=layout / "backends",
        caches=server / "caches",
        onnxruntime=onnxruntime,
    )


def _lay_out(layout: Path, server: Path, stub: Path, libpython: Path, backend: bytes) -> None:
    """Put the backends folder together beside its final name and rename it there, so that it is whole or absent."""
    new = Path(tempfile.mkdtemp(prefix=f".{layout.name}-", dir=layout.parent))
    python = new / "backends" / "python"
    shutil.copytree(server / "backends" / "python", python, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(stub, python / stub.name)
    (new / "backends" / "onnxruntime").mkdir()
    (new / "backends" / "onnxruntime" / "model.py").write_bytes(backend)
    (new / "lib").mkdir()
    (new / "lib" / libpython.name).symlink_to(libpython)
    new.chmod(0o755)
    try:
        new.rename(layout)
    except OSError:  # another process was first
        shutil.rmtree(new)
        if not layout.is_dir():
            raise
