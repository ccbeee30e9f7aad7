"""Building with the program trtexec of TensorRT 10 and 11.

Flags as in the program's own source, github.com/NVIDIA/TensorRT, samples/common/sampleOptions.cpp. From 11 on those
for precision are gone, `--stronglyTyped` does nothing, and plan files are otherwise asked for the same way.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from shipctl.errors import StageError
from shipctl_plugins._tensorrt.backends import NEWEST
from shipctl_plugins._tensorrt.building import Built, Job, keep_timing_cache, one_line, timing_cache_copy
from shipctl_plugins._tensorrt.layers import layers_from_json
from shipctl_plugins._tensorrt.profiles import Shape, Shapes

_HEAD = re.compile(r"^\[[\d/]+-[\d:]+\] \[([EWIV])\] (.*)$")
"""`[05/20/2026-10:11:12] [E] text` (samples/common/logging.h)."""
_ROUTINE = (
    "Failed to parse onnx file",
    "Parsing model failed",
    "Failed to create engine",
    "Engine set up failed",
)
"""What it says in the end of every failure."""
_PARSING = re.compile(r'While parsing node number \d+ \[(\S+) -> "(.*?)"\]')
_SHOWN = 20
_HARDWARE = {"ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}


def command_line(job: Job, layers: Path, cache: Path | None) -> list[str]:
    """Return the arguments, the program first.

    One inference follows the build instead of `--skipInference`: only with a running context does the layer
    information of a model with varying dimensions have types.
    """
    options, major = job.options, job.backend.major
    words = [
        str(job.backend.binary), f"--onnx={job.model}", f"--saveEngine={job.plan}", f"--exportLayerInfo={layers}",
        "--profilingVerbosity=detailed", "--iterations=1", "--warmUp=0", "--duration=0",
    ]  # fmt: skip
    words += _profile_words(job.profiles)
    words += [f"--{name}" for name in options.precision]
    if major < NEWEST and options.strongly_typed:
        words.append("--stronglyTyped")
    if options.workspace is not None:
        words.append(f"--memPoolSize=workspace:{int(options.workspace)}B")
    if cache is not None:
        words.append(f"--timingCacheFile={cache}")
    if options.builder_optimization_level is not None:
        words.append(f"--builderOptimizationLevel={options.builder_optimization_level}")
    if options.sparsity != "disable":
        words.append(f"--sparsity={options.sparsity}")
    if options.hardware_compatible != "none":
        words.append(f"--hardwareCompatibilityLevel={_HARDWARE[options.hardware_compatible]}")
    if options.dla_core is not None:
        words.append(f"--useDLACore={options.dla_core}")
    words += [
        flag
        for flag, wanted in (
            ("--versionCompatible", options.version_compatible), ("--allowGPUFallback", options.gpu_fallback),
            ("--refit", options.refit),
        ) if wanted
    ]  # fmt: skip
    words += [f"--dynamicPlugins={path}" for path in options.plugins]
    return words


def _profile_words(profiles: tuple[Shapes, ...]) -> Iterator[str]:
    for index, profile in enumerate(profiles):
        if len(profiles) > 1:
            yield f"--profile={index}"
        yield f"--minShapes={_shapes(profile.min)}"
        yield f"--optShapes={_shapes(profile.opt)}"
        yield f"--maxShapes={_shapes(profile.max)}"
    if profiles:
        yield f"--shapes={_shapes(profiles[0].opt)}"


def _shapes(shapes: dict[str, Shape]) -> str:
    # quotes let a name have a colon, as TensorFlow's do
    return ",".join(
        f"{_quoted(name)}:{'x'.join(map(str, shape)) or 'scalar'}" for name, shape in shapes.items()
    )


def _quoted(name: str) -> str:
    return f"'{name}'" if ":" in name else name


def build_with_trtexec(job: Job) -> Built:
    """Run the program and read the engine's layers from what it exports.

    :raises StageError: if it fails, with the errors that it logs
    """
    layers, cache = job.scratch / "layers.json", timing_cache_copy(job)
    words = command_line(job, layers, cache)
    job.log(" ".join(words))
    # no timeout of its own: the stage's ends the whole process group
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        cwd=job.scratch, check=False,
    )  # fmt: skip
    if done.returncode or not job.plan.is_file():
        faults = "".join(f"\n  {line}" for line in faults_of(done.stdout))
        ended = f"ended with {done.returncode}" if done.returncode else "wrote no engine"
        message = f"{job.backend} {ended}:{faults}"
        raise StageError(message)
    for severity, text in _records(done.stdout):
        if severity == "W":
            job.log(one_line(text))
    if cache is not None and cache.is_file():
        keep_timing_cache(job, cache)
    built = Built(version=job.backend.version)
    try:
        built.layers = layers_from_json(layers.read_text(errors="replace"))
    except (OSError, ValueError) as exc:
        built.uninspected = f"trtexec exported no layer information that can be read: {exc}"
    return built


def _records(output: str) -> list[tuple[str, str]]:
    """Return (severity, text) of all messages; lines without a head of their own belong to the one before."""
    found: list[tuple[str, str]] = []
    for line in output.splitlines():
        if head := _HEAD.match(line):
            found.append((head[1], head[2].removeprefix("[TRT] ").strip()))
        elif found and not line.startswith("&&&&"):
            found[-1] = found[-1][0], f"{found[-1][1]}\n{line}"
    return found


def faults_of(output: str) -> Iterator[str]:
    """Yield why trtexec failed: a line per node for the parser, else each error once, else the last that it printed."""
    seen: dict[str, None] = {}
    node = ""
    for severity, text in _records(output):
        if severity != "E" or any(part in text for part in _ROUTINE):
            continue
        node = _node(text) or node
        if "ERROR: " in text:
            seen[f"{node or 'graph'}: {one_line(text.partition(chr(10))[2] or text)}"] = None
            node = ""
        elif not node:
            seen[one_line(text.partition("]: ")[2] if text.startswith("Error[") else text)] = None
    last = [line for line in output.splitlines() if line.strip()][-1:]
    yield from [*seen][:_SHOWN] or last or ["it printed nothing"]


def _node(text: str) -> str:
    """Return `name (operator)` of the node that a message is about; empty for one about none."""
    if found := _PARSING.search(text):
        return f"{found[2]} ({found[1]})"
    return ""
