"""Which back end builds an engine here, and what of the options it cannot do."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from shipctl.errors import SpecError, UnavailableError
from shipctl_plugins._tensorrt.devices import Gpu, capability_of, gpus
from shipctl_plugins._tensorrt.options import EngineOptions

OLDEST, NEWEST = 10, 11
"""Major versions of TensorRT that the command line and the calls here are for."""
AHEAD_OF_TIME = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Architectures that TensorRT for RTX 1.x builds for without a GPU (its enumeration ComputeCapability)."""

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_DISTRIBUTIONS = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}
_BANNER = re.compile(r"\[TensorRT v(\d+)\]")
_SECONDS = 60


@dataclass(frozen=True)
class Backend:
    """What builds."""

    name: Literal["trtexec", "tensorrt", "tensorrt-rtx"]
    version: str
    """Of TensorRT (for RTX), such as 10.13.3; empty where it shows only when the module is imported."""
    binary: Path | None = None

    @property
    def flavor(self) -> Literal["tensorrt", "tensorrt-rtx"]:
        """The kind of engine that it makes."""
        return "tensorrt-rtx" if self.name == "tensorrt-rtx" else "tensorrt"

    @property
    def module(self) -> str:
        """The Python module to import, for one that is a module."""
        return _MODULES[self.name]

    @property
    def major(self) -> int:
        """The major version as TensorRT counts; TensorRT for RTX 1 has the interface of TensorRT 11."""
        return NEWEST if self.name == "tensorrt-rtx" else int(self.version.partition(".")[0] or NEWEST)

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()


def choose(options: EngineOptions) -> Backend:
    """Return the back end that ``options`` ask for.

    :raises UnavailableError: if it is not on this machine; `auto` says everything that it looked for
    """
    if options.backend == "trtexec":
        return _program(options)
    if options.backend != "auto":
        return _module(options.backend)
    if installed("tensorrt"):
        return _module("tensorrt")
    if options.binary is not None or shutil.which("trtexec"):
        return _program(options)
    message = (
        "no TensorRT here: neither the module tensorrt (pip install 'shipctl[tensorrt]') nor a program trtexec on "
        "PATH"
    )
    if installed("tensorrt-rtx"):
        message += (
            "; tensorrt-rtx is installed, whose engines Triton does not load: say `backend: tensorrt-rtx` if it is "
            "meant"
        )
    raise UnavailableError(message)


def installed(name: str) -> bool:
    """Whether the module of `tensorrt` or `tensorrt-rtx` can be imported."""
    try:
        found = importlib.util.find_spec(_MODULES[name])
    except ValueError:  # a module put into sys.modules by hand has no spec
        return True
    return found is not None and found.origin is not None  # a folder of that name is no module


def _module(name: Literal["tensorrt", "tensorrt-rtx"]) -> Backend:
    if not installed(name):
        message = f"the module {_MODULES[name]} is not installed; pip install 'shipctl[{name}]'"
        raise UnavailableError(message)
    for distribution in _DISTRIBUTIONS[name]:
        try:
            return Backend(name, _short(metadata.version(distribution)))
        except metadata.PackageNotFoundError:
            continue
    return Backend(name, "")


def _short(version: str) -> str:
    """Return a version without the build number that is its fourth part."""
    return ".".join(version.split(".")[:3])


def _program(options: EngineOptions) -> Backend:
    wanted = os.path.expanduser(options.binary) if options.binary else "trtexec"  # noqa: PTH111  (a name is no path)
    found = shutil.which(wanted)
    if found is None:
        where = f"{options.binary} is no program" if options.binary else "there is no program trtexec on PATH"
        message = f"{where}; install TensorRT, or say with `binary` where its trtexec is"
        raise UnavailableError(message)
    path = Path(found).resolve()
    try:
        done = subprocess.run(
            [path, "--help"], capture_output=True, text=True, timeout=_SECONDS, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        message = f"{path} does not run: {exc}"
        raise UnavailableError(message) from exc
    banner = _BANNER.search(done.stdout + done.stderr)
    if banner is None:
        first = (done.stderr or done.stdout).strip().partition("\n")[0] or "nothing"
        message = f"{path} is no trtexec of TensorRT: asked for --help it says {first!r}"
        raise UnavailableError(message)
    return Backend("trtexec", banner_version(banner[1]), path)


def banner_version(number: str) -> str:
    """Return the version of NV_TENSORRT_VERSION, which is 101303 for 10.13.3 and was 8601 for 8.6.1."""
    count, step = int(number), 100 if len(number) > 5 else 10  # noqa: PLR2004  (digits)
    if step == 10:  # noqa: PLR2004  (before version 10: thousands, hundreds)
        return f"{count // 1000}.{count // 100 % 10}.{count % 100}"
    return f"{count // 10000}.{count // 100 % 100}.{count % 100}"


def check_options(options: EngineOptions) -> Backend:
    """Return the back end, if everything that is asked of it can be had here.

    :raises SpecError: for options that contradict each other or that no machine could follow, all in one message
    :raises UnavailableError: for what this machine lacks, all in one message
    """
    if wrong := [*_contradictions(options)]:
        raise SpecError("; ".join(wrong))
    backend = choose(options)
    if wrong := [*_impossible(options, backend)]:
        raise SpecError(f"{backend} cannot do this: {'; '.join(wrong)}")
    if lacking := [*_lacking(options, backend, gpus())]:
        raise UnavailableError("; ".join(lacking))
    return backend


def _contradictions(options: EngineOptions) -> Iterator[str]:
    if "best" in options.precision:
        yield (
            "precision best lets TensorRT take whatever is fastest, so there is nothing to hold the engine to; "
            "name the types, such as [fp16]"
        )
    if {"fp16", "bf16"} <= {*options.precision}:
        yield "precision has fp16 and bf16; name one, so that it is known what was asked for"
    if options.precision and options.strongly_typed:
        yield "precision asks for weak typing, which is `strongly_typed: false` (TensorRT 10 only)"
    if options.gpu_fallback and options.dla_core is None:
        yield "gpu_fallback needs a dla_core"
    if options.gpu and options.compute_capability:
        yield "gpu and compute_capability both say what to build for; leave one out"
    files = [("timing_cache", options.timing_cache)]
    if options.binary and "/" in options.binary:
        files.append(("binary", options.binary))
    for name, path in files:
        # a stage works in a folder of its own: a relative path would name another file each time
        if path and not path.startswith(("/", "~")):
            yield f"{name}: {path!r} is a relative path; write it from / or ~"


def _impossible(options: EngineOptions, backend: Backend) -> Iterator[str]:
    """Say what no machine could follow: options that the back end or its version does not have."""
    yield from _version_problems(options, backend)
    if backend.name != "trtexec" and options.binary:
        yield "binary belongs to the back end trtexec"
    if backend.name != "trtexec" and options.sparsity == "force":
        yield "sparsity force is a feature of the program trtexec"
    if backend.major >= NEWEST and (options.precision or not options.strongly_typed):
        named = ", ".join(options.precision) or "strongly_typed: false"
        yield (
            f"{named}: its networks are strongly typed, precision lives in the graph; put fp16, int8-calibration or "
            "modelopt-quantize before this stage"
        )
    if backend.name == "tensorrt-rtx":
        yield from _impossible_for_rtx(options)
    elif options.compute_capability:
        yield (
            "compute_capability: it builds for the GPU at hand only (say which with gpu); tensorrt-rtx builds ahead "
            "of time"
        )
    elif options.gpu is None:
        yield "gpu is missing: an engine runs on one kind of GPU only, so the spec has to name it, such as `gpu: L4`"


def _version_problems(options: EngineOptions, backend: Backend) -> Iterator[str]:
    if backend.name != "tensorrt-rtx" and not OLDEST <= backend.major <= NEWEST:
        yield f"TensorRT {OLDEST} and {NEWEST} are supported"
    if options.version is None:
        if backend.name == "trtexec":
            yield f"version is missing; write `version: {backend.version}`"
    elif not _is_version(backend.version, options.version):
        yield f"version {options.version} is asked for"


def _is_version(version: str, wanted: str) -> bool:
    parts = wanted.split(".")
    return not version or version.split(".")[: len(parts)] == parts


def _impossible_for_rtx(options: EngineOptions) -> Iterator[str]:
    """Say what TensorRT for RTX takes and ignores (measured with 1.7: the engines are the same byte for byte)."""
    ignored = {
        "hardware_compatible": "engines run on the architectures of compute_capability",
        "builder_optimization_level": "kernels are chosen on the user's GPU",
        "sparsity": "kernels are chosen on the user's GPU",
        "timing_cache": "nothing is timed while it builds",
        "version_compatible": "it has no lean runtime",
        "dla_core": "it is for GPUs only",
    }
    for name, reason in ignored.items():
        if getattr(options, name) != EngineOptions.model_fields[name].default:
            yield f"{name}: {reason}"
    if options.gpu and capability_of(options.gpu) is None and not gpus():
        yield f"gpu: no compute capability of {options.gpu!r} is known here; say it with compute_capability"
    for capability in ahead_of_time(options):
        if capability not in AHEAD_OF_TIME:
            yield f"compute capability {capability}: it builds for {', '.join(AHEAD_OF_TIME)}"


def ahead_of_time(options: EngineOptions) -> tuple[str, ...]:
    """Return the architectures to build for without a GPU; none means the GPU at hand."""
    if options.compute_capability or options.gpu is None:
        return options.compute_capability
    known = capability_of(options.gpu)
    return (known,) if known else ()


def _lacking(options: EngineOptions, backend: Backend, here: Sequence[Gpu]) -> Iterator[str]:
    if backend.name == "tensorrt-rtx" and ahead_of_time(options):
        if options.refit and not here:
            yield "refit: tensorrt-rtx builds engines for refitting only with a GPU, and this machine has none"
        return
    if not here:
        advice = ""
        if backend.name == "tensorrt-rtx":
            advice = '; say for which architectures to build ahead of time: `compute_capability: ["8.9"]`'
        yield f"{backend} builds on a GPU, and this machine has none (or no driver){advice}"
    elif options.gpu and not here[0].is_called(options.gpu):
        yield f"gpu {options.gpu!r} is asked for, and this machine's first GPU is {here[0].name}"
