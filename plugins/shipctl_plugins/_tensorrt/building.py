"""What every back end is given and gives back."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shipctl_plugins._tensorrt.backends import Backend
from shipctl_plugins._tensorrt.layers import Layer
from shipctl_plugins._tensorrt.options import EngineOptions
from shipctl_plugins._tensorrt.profiles import Shapes

PLAN_FILE = "model.plan"


@dataclass(frozen=True)
class Job:
    """One engine to build."""

    model: Path
    """The ONNX file."""
    plan: Path
    """Where the engine has to be written."""
    scratch: Path
    """A folder for everything else."""
    options: EngineOptions
    backend: Backend
    profiles: tuple[Shapes, ...]
    """None for a model without varying dimensions."""
    capabilities: tuple[str, ...]
    """Architectures to build for ahead of time; none for the GPU at hand."""
    log: Callable[[str], None]


@dataclass
class Built:
    """What came of it."""

    version: str
    """Of TensorRT, such as 10.13.3."""
    layers: list[Layer] = field(default_factory=list)
    """None where TensorRT did not tell them, for the reason below."""
    uninspected: str = ""
    """Why the layers are not known; empty where they are."""


def timing_cache_copy(job: Job) -> Path | None:
    """Return a copy of the timing cache to work with (which may not exist yet); None where none is asked for."""
    if job.options.timing_cache is None:
        return None
    kept, copy = Path(job.options.timing_cache).expanduser(), job.scratch / "timing.cache"
    if kept.is_file():
        shutil.copyfile(kept, copy)
    return copy


def keep_timing_cache(job: Job, copy: Path) -> None:
    """Put a timing cache back in one step, so that a build at the same time reads the old or the new one."""
    kept = Path(str(job.options.timing_cache)).expanduser()
    kept.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=kept.parent, prefix=f".{kept.name}-")
    os.close(handle)
    shutil.copyfile(copy, name)
    Path(name).replace(kept)


_FROM = re.compile(r"\s*\(?\bIn (?:function )?\S+ at \S+?:\d+\)?")
_FRAME = re.compile(r"^(?:\[\d+\]|\[[\w.]+\.cpp:\d+: \w+\]|\[[\w.]+::\w+::\d+\]) ")
_API = re.compile(r"^(?:\S+: )?(?:\[\S+\] )?Error Code \d+: [^(]*\((.*?)\)?$")
"""`IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check] what is wrong. In f at /path:1)`."""


def one_line(text: str) -> str:
    """Return a message of TensorRT's as one line, without places in its sources and the missing driver's faults."""
    found = dict.fromkeys(_plain(line) for line in text.splitlines() if line and "cudaError" not in line)
    return "; ".join(line for line in found if line) or text.strip().partition("\n")[0]


def _plain(line: str) -> str:
    line = _API.sub(r"\1", _FROM.sub("", _FRAME.sub("", line.strip())).strip())
    return _FRAME.sub("", line).strip(" .")


def errors_of(lines: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the errors of a log of (severity, message), a line each and each once."""
    seen = set[str]()
    for severity, message in lines:
        line = one_line(message)
        if severity in {"ERROR", "INTERNAL_ERROR"} and line not in seen:
            seen.add(line)
            yield line
