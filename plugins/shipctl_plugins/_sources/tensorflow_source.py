"""TensorFlow models from source: SavedModels and Keras 3 files, called with named arrays."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import TensorflowModel
from shipctl_plugins._sources.tensorflow_files import (
    Callee,
    Tensor,
    described,
    open_keras_file,
    open_saved_model,
)

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",  # its C++ code writes past Python's streams, and says nothing about the model
    "TF_ENABLE_ONEDNN_OPTS": "0",  # sums in the same order on every processor
    "KERAS_BACKEND": "tensorflow",
}


class TensorflowSource:
    """A model that is open: a function from the signature's inputs to its outputs, both in its order."""

    def __init__(self, callee: Callee, signature: Signature) -> None:
        """Find the signature's tensors among the model's own.

        :raises StageError: if they are not there, or have another dtype or shape
        """
        import tensorflow as tf

        self.signature = signature
        inputs = _matched(signature.inputs, callee.inputs, "input", ordered=callee.ordered)
        outputs = _matched(signature.outputs, callee.outputs, "output", ordered=callee.ordered)
        # the tensors of a trace need names that TensorFlow takes; those of the signature may be any
        shapes = [
            [None if isinstance(size, str) else size for size in spec.shape] for spec in signature.inputs
        ]
        specs = [
            tf.TensorSpec(shape, spec.dtype, f"input_{index}")
            for index, (shape, spec) in enumerate(zip(shapes, signature.inputs, strict=True))
        ]

        def function(*tensors: Any) -> list[Any]:
            given = dict(zip(inputs, tensors, strict=True))
            answers = callee.call([given[index] for index in range(len(callee.inputs))])
            return [answers[index] for index in outputs]

        self.specs: list[Any] = specs
        """A `tf.TensorSpec` per input: ``function`` was made for these."""
        self.function: Any = tf.function(function, input_signature=specs, autograph=False)
        """A `tf.function` from a tensor per input to the list of outputs."""

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs for ``feed`` by the signature's names.

        :raises StageError: if the model fails on it
        """
        import tensorflow as tf

        try:
            outputs = self.function(*[tf.constant(feed[spec.name]) for spec in self.signature.inputs])
        except Exception as exc:  # a model may raise anything
            shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feed.items())
            message = f"the model fails on {shapes}: {described(exc)}"
            raise StageError(message) from exc
        return {
            spec.name: output.numpy() for spec, output in zip(self.signature.outputs, outputs, strict=True)
        }


@contextmanager
def tensorflow_source(
    model: TensorflowModel, *, threads: int, signature_name: str | None = None
) -> Iterator[TensorflowSource]:
    """Open ``model`` with ``threads`` threads, where TensorFlow is not running with others already.

    ``signature_name`` chooses among the signatures of a SavedModel; without it, it is `serving_default`, or the
    only other one that has the declared inputs and outputs.

    :raises StageError: if it cannot be opened, would run code of its own, or is not as its signature says
    """
    tf, keras = import_tensorflow()
    with suppress(RuntimeError):  # it is running
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    # names of layers are counted through in a process, and would come out in the graph
    keras.utils.clear_session(free_memory=False)
    try:
        callee = (
            open_keras_file(model) if model.format == "keras" else open_saved_model(model, signature_name)
        )
        yield TensorflowSource(callee, model.signature)
    finally:
        keras.utils.clear_session()


def import_tensorflow() -> tuple[Any, Any]:
    """Import TensorFlow and Keras without a word on the terminal or a file in the home folder; return both.

    :raises StageError: if Keras runs on another framework in this process
    """
    before = {name: os.environ.get(name) for name in (*_ENVIRONMENT, "KERAS_HOME")}
    with tempfile.TemporaryDirectory() as home, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "keras" not in sys.modules:
            os.environ["KERAS_HOME"] = home  # what a user's keras.json says must not change a model
        os.environ.update(_ENVIRONMENT)
        try:
            import keras
            import tensorflow as tf
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
    if keras.config.backend() != "tensorflow":
        message = (
            f"Keras runs on {keras.config.backend()} in this process; unset KERAS_BACKEND and start again"
        )
        raise StageError(message)
    return tf, keras


def _matched(
    declared: Sequence[TensorSpec], there: Sequence[Tensor], side: str, *, ordered: bool
) -> list[int]:
    """Return, for each declared tensor, the index of the model's own.

    They are the same by name. Where no name is known, as Keras makes some up, they go by order.

    :raises StageError: listing what is there
    """
    names, wanted = [tensor.name for tensor in there], [spec.name for spec in declared]
    listed = f"the model's {side}s are {', '.join(map(str, there))}"
    # one may leave outputs out, and no input
    complete = side == "output" or len(wanted) == len(names)
    if complete and set(wanted) <= set(names):
        indices = [names.index(name) for name in wanted]
    elif len(wanted) == len(names) and not set(wanted) & set(names) and (ordered or len(names) == 1):
        indices = list(range(len(names)))
    else:
        message = f"{listed}; declared are {', '.join(map(str, declared))}; name them alike in the spec"
        raise StageError(message)
    for spec, index in zip(declared, indices, strict=True):
        if not _fits(spec, there[index]):
            message = f"{listed}; declared is {spec}; correct the signature or the model"
            raise StageError(message)
    return indices


def _fits(spec: TensorSpec, tensor: Tensor) -> bool:
    if spec.dtype != tensor.dtype:
        return False
    return tensor.shape is None or (
        len(spec.shape) == len(tensor.shape)
        and all(own is None or own == size for size, own in zip(spec.shape, tensor.shape, strict=True))
    )
