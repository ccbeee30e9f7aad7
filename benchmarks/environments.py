"""Virtual environments of the measured programs: one each, made once, so that none slows another's start."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import NotMeasuredError, say

ROOT = Path(__file__).resolve().parent.parent
STAGES = ROOT / "benchmarks" / "trivial"
CONSTRAINTS = ROOT / "constraints.txt"
DEFAULT_FOLDER = ROOT / ".cache" / "benchmarks"
PEERS = {"doit": "doit==0.37.0", "snakemake": "snakemake==9.27.1", "dvc": "dvc==3.67.1"}
STORE_PEERS = {"awscli": "awscli==1.46.2"}
# 0.12 and 0.13 cannot serialise a metric of one's own, which MiniLM needs; requests is what Olive forgets to ask for.
OLIVE = ("torch==2.13.0", "olive-ai==0.11.0", "onnx==1.23.2", "onnxruntime==1.31.1", "requests", "psutil")
_TIMEOUT = 900.0


@dataclass(frozen=True)
class Environment:
    """One installed program: the folder of its executables and what ``pip`` says is there."""

    name: str
    bin: Path
    version: str
    distributions: int

    def program(self, name: str) -> str:
        """Return the path of an executable of the environment."""
        return str(self.bin / name)


def shipctl(folder: Path) -> Environment:
    """Return the environment of this checkout: the base install, editable, with the stages of the benchmark."""
    sources = [ROOT / "pyproject.toml", CONSTRAINTS, *sorted(STAGES.rglob("*.py")), STAGES / "pyproject.toml"]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    pinned = ["--constraint", str(CONSTRAINTS), "--build-constraint", str(CONSTRAINTS)]
    return _environment(folder, "shipctl", key, [*pinned, "--editable", str(ROOT), str(STAGES)])


def peer(folder: Path, name: str) -> Environment:
    """Return the environment of one of ``PEERS`` or ``STORE_PEERS``."""
    wanted = (PEERS | STORE_PEERS)[name]
    return _environment(folder, name, hashlib.sha256(wanted.encode()).hexdigest(), [wanted])


def olive(folder: Path) -> Environment:
    """Return the environment of Olive, with the ONNX Runtime that shipctl has."""
    return _environment(folder, "olive-ai", hashlib.sha256(" ".join(OLIVE).encode()).hexdigest(), list(OLIVE))


def installed(folder: Path, wanted: Sequence[str]) -> tuple[dict[str, Environment], dict[str, str]]:
    """Return the environments of the programs, and why some could not be made."""
    found: dict[str, Environment] = {}
    absent: dict[str, str] = {}
    for name in wanted:
        try:
            found[name] = peer(folder, name) if name in PEERS | STORE_PEERS else shipctl(folder)
        except NotMeasuredError as exc:
            absent[name] = str(exc)
    return found, absent


def _environment(folder: Path, name: str, key: str, wanted: Sequence[str]) -> Environment:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    place = folder.resolve() / f"{name}-py{version}-{key[:10]}"
    if not (place / "ready.json").exists():
        say(f"making the environment of {name}")
        _make(place, wanted)
    installed: dict[str, str] = json.loads((place / "ready.json").read_text())
    return Environment(name, place / "bin", installed[name], len(installed))


def _make(place: Path, wanted: Sequence[str]) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    python = str(place / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    _run([sys.executable, "-m", "venv", str(place)])
    _run([*pip, "install", "--quiet", "--upgrade", "--constraint", str(CONSTRAINTS), "pip"])
    _run([*pip, "install", "--quiet", *wanted])
    listed = json.loads(_run([*pip, "list", "--format=json"]))
    body = {entry["name"]: entry["version"] for entry in listed}
    (place / "ready.json").write_text(json.dumps(body, indent=1))


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=True)
    except subprocess.TimeoutExpired as exc:
        message = f"`{' '.join(command[1:4])} …` took more than {_TIMEOUT:.0f} s"
        raise NotMeasuredError(message) from exc
    except subprocess.CalledProcessError as exc:
        last = (exc.stderr.strip() or exc.stdout.strip() or "it said nothing").splitlines()[-1]
        message = f"`{' '.join(command[1:4])} …` failed: {last}"
        raise NotMeasuredError(message) from exc
    return done.stdout
