"""The two kinds of files that TensorFlow models come in, opened: a Keras 3 file, and the folder of a SavedModel."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl.signature import Signature
from shipctl.stages.artifacts import TensorflowModel
from shipctl_plugins._sources.files import main_file

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_SIGNATURE = "serving_default"
FILE_OPERATIONS = frozenset({"ReadFile", "WriteFile"})
"""Operators by which a graph gets at any file of the machine that runs it."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Tensor:
    """An input or output as the model itself describes it."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None
    """None in it for a size that varies, None for a rank that does."""

    def __str__(self) -> str:
        sizes = (
            "?"
            if self.shape is None
            else ", ".join("?" if size is None else str(size) for size in self.shape)
        )
        return f"{self.name}: {self.dtype}[{sizes}]"


@dataclass(frozen=True)
class Callee:
    """A model's function, before it is known which of its tensors are which of the signature's."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    call: Callable[[list[Any]], list[Any]]
    """From tensors in the order of ``inputs`` to tensors in the order of ``outputs``."""
    ordered: bool
    """Whether the order is one that the model's author chose."""


def described(exc: BaseException) -> str:
    """Return an exception in one line; Keras says the cause in a later line than the first, in colours."""
    lines = [line.strip() for line in _COLOURS.sub("", str(exc)).splitlines()]
    telling = [line for line in lines if line and not line.startswith("Exception encountered when calling")]
    return f"{type(exc).__name__}: {telling[0]}" if telling else type(exc).__name__


# -- Keras -------------------------------------------------------------------------------------------------------


def open_keras_file(model: TensorflowModel) -> Callee:
    """Open a `.keras` file, which runs code of its own only if it is trusted.

    :raises StageError: if it is none, would run code, or does not say its inputs
    """
    import keras

    path = main_file(model, {".keras"})
    lambdas = lambda_layers(path)
    if lambdas and not model.trusted:
        message = (
            f"{path.name} has code of its own in {'layer' if len(lambdas) == 1 else 'layers'} "
            f"{', '.join(lambdas)} (Lambda), which runs when it is opened; write it with Keras's operations, or "
            "`trust_pickle: true` below `model:` if you trust who made it"
        )
        raise StageError(message)
    try:
        network = keras.saving.load_model(path, compile=False, safe_mode=not model.trusted)
    except Exception as exc:  # Keras raises whatever a layer's configuration makes it raise
        message = f"Keras {keras.__version__} does not open {path.name}: {described(exc)}"
        raise StageError(message) from exc
    if not network.inputs:
        message = (
            f"{path.name} does not say its inputs; save it as a functional or sequential model that was built"
        )
        raise StageError(message)
    outputs = network.outputs
    struct = getattr(network, "_inputs_struct", network.inputs)
    struct = struct[0] if isinstance(struct, list) and len(struct) == 1 else struct
    names = _output_names(network)

    def call(tensors: list[Any]) -> list[Any]:
        packed = keras.tree.pack_sequence_as(struct, tensors)
        return list(keras.tree.flatten(network(packed, training=False)))

    return Callee(
        inputs=tuple(_keras_tensor(tensor.name, tensor) for tensor in network.inputs),
        outputs=tuple(_keras_tensor(name, tensor) for name, tensor in zip(names, outputs, strict=True)),
        call=call,
        ordered=True,
    )


def lambda_layers(path: Path) -> list[str]:
    """Return the names of the Lambda layers in a .keras file, at any depth.

    :raises StageError: if it is no such file
    """
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as exc:
        message = f"{path.name} is not a file of Keras 3: {exc}; save the model again with model.save(…)"
        raise StageError(message) from exc
    return sorted(set(_lambdas(config)))


def _lambdas(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        if config.get("class_name") == "Lambda":
            yield str((config.get("config") or {}).get("name", "without a name"))
        for value in config.values():
            yield from _lambdas(value)
    elif isinstance(config, list):
        for value in config:
            yield from _lambdas(value)


def _output_names(network: Any) -> list[str]:
    """Return the keys of a model that answers with a dict, else the names of the layers that answer."""
    struct = getattr(network, "_outputs_struct", None)
    if isinstance(struct, Mapping) and len(struct) == len(network.outputs):
        return sorted(struct)  # the order in which Keras flattens it
    names = getattr(network, "output_names", None) or [network.layers[-1].name]
    return list(map(str, names))


def _keras_tensor(name: str, tensor: Any) -> Tensor:
    return Tensor(name, str(tensor.dtype), tuple(tensor.shape))


# -- SavedModels ---------------------------------------------------------------------------------------------------


def open_saved_model(model: TensorflowModel, wanted: str | None) -> Callee:
    """Open a SavedModel and return its signature called ``wanted``; None chooses by what is declared.

    :raises StageError: if it is none, reaches files of this machine, or has no such signature
    """
    import tensorflow as tf

    _require_no_file_operations(model)
    try:
        loaded = tf.saved_model.load(str(model.root))
    except Exception as exc:  # TensorFlow's exceptions share no base of their own
        message = f"TensorFlow {tf.__version__} does not open the SavedModel: {described(exc)}"
        raise StageError(message) from exc
    signatures = {name: _callee(function, loaded) for name, function in dict(loaded.signatures).items()}
    return signatures[_choice(signatures, model.signature, wanted)]


def _callee(function: Any, owner: Any) -> Callee:
    _, keywords = function.structured_input_signature
    inputs = tuple(_spec_tensor(name, spec) for name, spec in keywords.items())
    answers: Mapping[str, Any] = function.structured_outputs
    outputs = tuple(_spec_tensor(name, spec) for name, spec in answers.items())

    def call(tensors: list[Any]) -> list[Any]:
        _ = owner  # its variables live as long as it does
        found = function(**{tensor.name: value for tensor, value in zip(inputs, tensors, strict=True)})
        return [found[tensor.name] for tensor in outputs]

    return Callee(inputs=inputs, outputs=outputs, call=call, ordered=False)


def _spec_tensor(name: str, spec: Any) -> Tensor:
    return Tensor(name, spec.dtype.name, None if spec.shape.rank is None else tuple(spec.shape))


def _choice(signatures: Mapping[str, Callee], declared: Signature, wanted: str | None) -> str:
    there = "; ".join(
        f"{name}({', '.join(map(str, callee.inputs))}) -> {', '.join(map(str, callee.outputs))}"
        for name, callee in signatures.items()
    )
    if not signatures:
        raise StageError("the SavedModel has no signatures; export it with model.export(…) or `signatures=`")
    if wanted is not None:
        if wanted not in signatures:
            message = f"the SavedModel has no signature {wanted!r}, only {there}; correct `signature_name`"
            raise StageError(message)
        return wanted
    if DEFAULT_SIGNATURE in signatures:
        return DEFAULT_SIGNATURE
    fitting = [name for name, callee in signatures.items() if _has_names(callee, declared)]
    if len(fitting) != 1:
        message = f"the SavedModel has the signatures {there}; choose one with `signature_name`"
        raise StageError(message)
    return fitting[0]


def _has_names(callee: Callee, declared: Signature) -> bool:
    sides = ((callee.inputs, declared.inputs), (callee.outputs, declared.outputs))
    return all({spec.name for spec in specs} <= {tensor.name for tensor in there} for there, specs in sides)


def _require_no_file_operations(model: TensorflowModel) -> None:
    """Refuse a graph that reads or writes files of its own choice, as loading already may run a part of it."""
    if model.trusted:
        return
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    content = SavedModel()
    try:
        content.ParseFromString((model.root / "saved_model.pb").read_bytes())
    except Exception as exc:  # protobuf's errors have no public base
        message = f"saved_model.pb cannot be read: {exc}; export the model again"
        raise StageError(message) from exc
    graphs = [meta.graph_def for meta in content.meta_graphs]
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [node for graph in graphs for function in graph.library.function for node in function.node_def]
    found = sorted({node.op for node in nodes} & FILE_OPERATIONS)
    if found:
        message = (
            f"the SavedModel has the operators {', '.join(found)}, which reach any file of this machine; export it "
            "without them, or write `trust_pickle: true` below `model:` if you trust who made it"
        )
        raise StageError(message)
