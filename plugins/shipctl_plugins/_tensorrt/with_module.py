"""Building with the Python modules tensorrt (10, 11) and tensorrt_rtx, which have one interface."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shipctl.errors import StageError
from shipctl_plugins._tensorrt.backends import NEWEST
from shipctl_plugins._tensorrt.building import (
    Built,
    Job,
    errors_of,
    keep_timing_cache,
    one_line,
    timing_cache_copy,
)
from shipctl_plugins._tensorrt.devices import gpus
from shipctl_plugins._tensorrt.layers import layers_from_json, layers_from_log
from shipctl_plugins._tensorrt.profiles import Shapes

_LOGGERS: dict[str, Any] = {}


def logger_of(trt: Any) -> Any:
    """Return this process's logger for a module: TensorRT keeps the first one that it is given.

    It collects (severity, message) in ``lines``, from verbose on.
    """
    name = trt.__name__
    if name not in _LOGGERS:

        class _Collector(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.lines: list[tuple[str, str]] = []

            def log(self, severity: Any, message: str) -> None:
                self.lines.append((str(severity).rpartition(".")[2], message))

        _LOGGERS[name] = _Collector()
    _LOGGERS[name].lines.clear()
    return _LOGGERS[name]


def build_with_module(job: Job) -> Built:
    """Parse, configure, build, and find out what the layers compute in.

    :raises StageError: if the parser or the builder refuses, with all that it says
    """
    trt = importlib.import_module(job.backend.module)
    logger = logger_of(trt)
    major = int(trt.__version__.partition(".")[0]) if job.backend.name == "tensorrt" else NEWEST
    builder = trt.Builder(logger)
    _load_plugins(trt, logger, builder, job)
    network = builder.create_network(_network_flags(trt, job, major))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(job.model)):
        faults = "".join(f"\n  {line}" for line in _parser_faults(parser))
        message = f"{job.backend} does not take this graph:{faults}"
        raise StageError(message)
    config = builder.create_builder_config()
    cache = _configure(trt, builder, config, job)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        faults = "".join(f"\n  {line}" for line in errors_of(logger.lines)) or " it does not say why"
        message = f"{job.backend} cannot build this engine:{faults}"
        raise StageError(message)
    job.plan.write_bytes(plan)
    if cache is not None:
        cache.write_bytes(config.get_timing_cache().serialize())
        keep_timing_cache(job, cache)
    for severity, message in logger.lines:
        if severity == "WARNING":
            job.log(one_line(message))
    return _inspect(trt, logger, job)


def _network_flags(trt: Any, job: Job, major: int) -> int:
    if major >= NEWEST or not job.options.strongly_typed:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _parser_faults(parser: Any) -> Iterator[str]:
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = f"{error.node_name()} ({error.node_operator()})" if error.node_name() else "graph"
        yield f"{where}: {one_line(error.desc())}"


def _load_plugins(trt: Any, logger: Any, builder: Any, job: Job) -> None:
    if not job.options.plugins:
        return
    trt.init_libnvinfer_plugins(logger, "")
    registry = builder.get_plugin_registry()
    for path in job.options.plugins:
        if registry.load_library(path) is None:
            faults = "; ".join(errors_of(logger.lines)) or "no reason given"
            message = f"plugin library {path} does not load: {faults}"
            raise StageError(message)


def _configure(trt: Any, builder: Any, config: Any, job: Job) -> Path | None:
    """Set every option and return the timing cache's working copy."""
    options = job.options
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for name in _flags(job):
        config.set_flag(getattr(trt.BuilderFlag, name))
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace))
    if options.builder_optimization_level is not None:
        config.builder_optimization_level = options.builder_optimization_level
    if options.hardware_compatible != "none":
        config.hardware_compatibility_level = _member(
            trt.HardwareCompatibilityLevel, options.hardware_compatible.upper(), job
        )
    if options.dla_core is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options.dla_core
    for profile in job.profiles:
        config.add_optimization_profile(_profile(builder, profile))
    if job.capabilities:
        config.num_compute_capabilities = len(job.capabilities)
        for index, capability in enumerate(job.capabilities):
            member = _member(trt.ComputeCapability, "SM" + capability.replace(".", ""), job)
            config.set_compute_capability(member, index)
    cache = timing_cache_copy(job)
    if cache is not None:
        known = cache.read_bytes() if cache.is_file() else b""
        # a cache of another version or GPU is refused here, and one must not lose a build to it
        if not config.set_timing_cache(config.create_timing_cache(known), False):
            job.log("the timing cache is of another GPU or version of TensorRT; it starts anew")
            config.set_timing_cache(config.create_timing_cache(b""), False)
    return cache


def _flags(job: Job) -> list[str]:
    options = job.options
    asked = {
        "SPARSE_WEIGHTS": options.sparsity == "enable",
        "VERSION_COMPATIBLE": options.version_compatible,
        "REFIT": options.refit,
        "GPU_FALLBACK": options.gpu_fallback,
    }
    return [name for name, wanted in asked.items() if wanted] + [name.upper() for name in options.precision]


def _member(enumeration: Any, name: str, job: Job) -> Any:
    found = getattr(enumeration, name, None)
    if found is None:
        message = f"{job.backend} has no {enumeration.__name__}.{name}; take a newer version"
        raise StageError(message)
    return found


def _profile(builder: Any, shapes: Shapes) -> Any:
    profile = builder.create_optimization_profile()
    for name, smallest in shapes.min.items():
        profile.set_shape(name, smallest, shapes.opt[name], shapes.max[name])
    return profile


def _inspect(trt: Any, logger: Any, job: Job) -> Built:
    """Ask the engine itself where a GPU can load it, else the builder's log of its layers."""
    built = Built(version=".".join(str(trt.__version__).split(".")[:3]))
    if gpus() and (not job.capabilities or gpus()[0].capability in job.capabilities):
        engine = trt.Runtime(logger).deserialize_cuda_engine(job.plan.read_bytes())
        if engine is None:
            faults = "; ".join(errors_of(logger.lines)) or "no reason given"
            message = f"the engine was built and does not load: {faults}"
            raise StageError(message)
        inspector = engine.create_engine_inspector()
        inspector.execution_context = _context(engine, job)
        try:
            built.layers = layers_from_json(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
        except (ValueError, json.JSONDecodeError) as exc:
            built.uninspected = f"the engine inspector's answer cannot be read: {exc}"
    else:
        built.layers = layers_from_log(message for _, message in logger.lines)
    if not built.layers and not built.uninspected:
        built.uninspected = "no GPU here can load the engine, and the builder's log lists no layers"
    return built


def _context(engine: Any, job: Job) -> Any:
    """Return a context with the shapes it is tuned for: without shapes, TensorRT 10 does not tell types."""
    context = engine.create_execution_context()
    for name, shape in (job.profiles[0].opt if job.profiles else {}).items():
        context.set_input_shape(name, shape)
    return context
