"""Calling NVIDIA ModelOpt on ONNX files: what it is given, and what it does besides, kept in bounds."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl.signature import Signature
from shipctl_plugins._onnx import arrays, graph
from shipctl_plugins._onnx.noise import routed, temporary_files_in
from shipctl_plugins._onnx.session import first_line

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

    Array = np.ndarray[Any, np.dtype[Any]]
    Log = Any

NOISE = (
    "Collecting tensor data", "Finding optimal threshold", "Number of ", "it/s]", "Failed to get GPU count",
    "colored module", "Using slower INT4", "Shared constants were detected", "Updating minimum opset", "INFO",
)  # fmt: skip
"""What it prints for every model."""
EXTENSION = "modelopt_round_and_pack_ext"


@dataclass(frozen=True)
class Request:
    """What ModelOpt is asked."""

    mode: str
    method: str | None
    dtype: str
    op_types: tuple[str, ...] | None
    exclude: Sequence[str]
    exclude_op_types: tuple[str, ...]
    block_size: int | None
    store_quantized: bool


def patterns(names: Sequence[str]) -> list[str]:
    """Return regular expressions, as ModelOpt wants them, that match these names and no others."""
    return [f"^{re.escape(name)}$" for name in names]


def calibration_feed(
    data: Mapping[str, Array], signature: Signature, batch: int, role: str
) -> tuple[dict[str, Array], str]:
    """Return the samples that calibrate and their shape per run, as ModelOpt writes it.

    Said nothing, it calibrates a varying batch at 1 and leaves out what looks too small then. It runs whole batches
    only, so that samples beyond the last whole one are left out here, where they can be counted.

    :raises StageError: if there are fewer samples than the model's fixed batch
    """
    count = len(next(iter(data.values())))
    fixed = arrays.fixed_batch(signature)
    size = fixed or min(batch, count)
    whole = count // size * size if size else 0
    if not whole:
        message = f"{role} data has {count} sample(s), and the model takes batches of {fixed}; give more"
        raise StageError(
            message
            if fixed
            else f"{role} data is empty; give some hundred samples of what the model will see"
        )
    feed = {name: array[:whole] for name, array in data.items()}
    shapes = ",".join(
        f"{name}:{'x'.join(map(str, (size, *array.shape[1:])))}" for name, array in feed.items()
    )
    return feed, shapes


def lacks_compiler() -> bool:
    """Whether INT4 cannot work here: its packing is C++ that is compiled on first use, and else ends the process."""
    found = importlib.util.find_spec("modelopt")
    for root in (found.submodule_search_locations or ()) if found else ():
        if list(Path(root).glob(f"onnx/quantization/src/{EXTENSION}*.so")):
            return False
    return not any(shutil.which(name) for name in (os.environ.get("CXX", "g++").split()[0], "c++"))


def quantize(
    source: ModelProto, request: Request, feed: Mapping[str, Array], shapes: str, scratch: Path, log: Log
) -> ModelProto:
    """Return ``source`` quantised to INT8, FP8 or INT4 (weights only).

    :raises StageError: with what ModelOpt says
    """
    result = scratch / "quantized.onnx"
    path = graph.save_model(source, scratch / "source") / graph.MODEL_FILE
    with _quiet(scratch, log), _own_runtime():
        from modelopt.onnx.quantization.quantize import quantize as call

        call(
            str(path), quantize_mode=request.mode, calibration_method=request.method, calibration_eps=["cpu"],
            calibration_data=dict(feed) or None, calibration_shapes=shapes or None,
            op_types_to_quantize=list(request.op_types) if request.op_types else None,
            op_types_to_exclude=list(request.exclude_op_types) or None,
            nodes_to_exclude=patterns(request.exclude) or None, high_precision_dtype=request.dtype,
            dq_only=request.store_quantized, block_size=request.block_size, output_path=str(result),
            use_external_data_format=source.ByteSize() > graph.INLINE_LIMIT, log_level="WARNING",
        )  # fmt: skip
    return graph.load_model(result)


def autocast(
    source: ModelProto, request: Request, feed: Mapping[str, Array], scratch: Path, log: Log
) -> ModelProto:
    """Return ``source`` with all nodes in ``request.dtype`` that stay in range there.

    :raises StageError: with what ModelOpt says
    """
    import numpy as np

    path = graph.save_model(source, scratch / "source") / graph.MODEL_FILE
    samples = None
    if feed:
        samples = str(scratch / "samples.npz")
        np.savez(samples, allow_pickle=False, **feed)
    made: Any = None
    with _quiet(scratch, log):
        from modelopt.onnx.autocast import convert_to_mixed_precision

        made = convert_to_mixed_precision(
            str(path), low_precision_type=request.dtype, keep_io_types=True, calibration_data=samples,
            nodes_to_exclude=patterns(request.exclude) or None,
            op_types_to_exclude=list(request.exclude_op_types) or None,
        )  # fmt: skip
    converted: ModelProto = made
    return converted


@contextmanager
def _own_runtime() -> Iterator[None]:
    """Take back what ModelOpt changes for good in ONNX Runtime's quantiser: methods, and the table of operators.

    Another stage in this process would quantise otherwise by them, or not at all, and so would ModelOpt itself.
    """
    from onnxruntime.quantization import base_quantizer, calibrate, qdq_quantizer, registry

    tables = (registry.QDQRegistry, registry.QLinearOpsRegistry)
    places = (
        calibrate, calibrate.CalibraterBase, calibrate.MinMaxCalibrater, calibrate.HistogramCalibrater,
        calibrate.HistogramCollector, base_quantizer.BaseQuantizer, qdq_quantizer.QDQQuantizer,
    )  # fmt: skip
    contents, attributes = [dict(table) for table in tables], [dict(vars(place)) for place in places]
    try:
        yield
    finally:
        for table, content in zip(tables, contents, strict=True):
            table.clear()
            table.update(content)
        for place, before in zip(places, attributes, strict=True):
            _restore(place, before)


def _restore(place: Any, before: Mapping[str, Any]) -> None:
    for name in [name for name, value in vars(place).items() if before.get(name) is not value]:
        if name in before:
            setattr(place, name, before[name])
        else:
            delattr(place, name)


@contextmanager
def _quiet(scratch: Path, log: Log) -> Iterator[None]:
    import modelopt.onnx.quantization  # its loggers have to be there before their output is routed
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    # it compiles an extension with setuptools, which would read a pyproject.toml of the current folder
    with routed(log, *NOISE), temporary_files_in(scratch / "tmp"), chdir(scratch):
        try:
            yield
        except (Exception, SystemExit) as exc:  # it raises whatever it meets; cppimport ends the process
            version = modelopt.__version__
            if isinstance(exc, SystemExit):
                message = (
                    f"ModelOpt {version} cannot compile its extension {EXTENSION}: install a C++ compiler and Python's "
                    "headers (g++, python3-dev)"
                )
            else:
                message = f"ModelOpt {version} fails on this graph: {type(exc).__name__}: {first_line(exc)}"
            raise StageError(message) from exc


def transpose_gemms(model: ModelProto) -> None:
    """Write constant matrices of Gemms the other way round where they are transposed.

    ModelOpt packs INT4 along the wrong axis of a Gemm with transB=1, as torch exports it: the model loads, and fails
    at the first run.
    """
    from onnx import helper, numpy_helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    turned: dict[str, str] = {}
    for node in model.graph.node:
        flag = next((item for item in node.attribute if item.name == "transB" and item.i), None)
        if node.op_type != "Gemm" or node.domain or flag is None or node.input[1] not in weights:
            continue
        name = node.input[1]
        if name not in turned:
            turned[name] = _free(f"{name}_transposed", weights)
            array = numpy_helper.to_array(weights[name]).T.copy()
            model.graph.initializer.append(numpy_helper.from_array(array, turned[name]))
        node.input[1] = turned[name]
        flag.CopyFrom(helper.make_attribute("transB", 0))
    used = {name for node in model.graph.node for name in node.input}
    for name in turned:
        if name not in used:
            model.graph.initializer.remove(weights[name])


def _free(name: str, taken: Mapping[str, Any]) -> str:
    while name in taken:
        name += "_"
    return name
