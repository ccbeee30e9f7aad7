"""One way to ask any source model, whatever framework it is written in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from shipctl.stages.artifacts import (
    Artifact,
    HuggingFaceModel,
    OnnxModel,
    SklearnModel,
    SourceModel,
    TensorflowModel,
    TorchModel,
)
from shipctl_plugins._onnx.session import open_session, run_session

if TYPE_CHECKING:
    import numpy as np
    from onnxruntime import InferenceSession

    Array = np.ndarray[Any, np.dtype[Any]]

AnySource = TorchModel | TensorflowModel | SklearnModel | HuggingFaceModel
"""For the inputs of stages that take a model from whatever framework."""
_FRAMEWORKS: Mapping[type[SourceModel], tuple[str, str]] = {
    TorchModel: ("torch", "shipctl[torch]"),
    TensorflowModel: ("tensorflow", "shipctl[tensorflow]"),
    SklearnModel: ("sklearn", "shipctl[sklearn]"),
    HuggingFaceModel: ("transformers", "shipctl[huggingface]"),
}


def needed_for(model: Artifact | None) -> tuple[str, str]:
    """Return the module that it takes to ask a source model, and the extra that brings it; empty texts for none."""
    return next((needed for kind, needed in _FRAMEWORKS.items() if isinstance(model, kind)), ("", ""))


class RunnableSource(Protocol):
    """A source model that is open."""

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs for ``feed``, by the names of the signature.

        :raises StageError: if the model fails on it, or answers otherwise than its signature says
        """
        ...


class _Graph:
    """An ONNX model, asked like a source model."""

    def __init__(self, session: InferenceSession) -> None:
        self._session = session

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name."""
        return run_session(self._session, feed)


@contextmanager
def open_source(
    model: SourceModel | OnnxModel, *, seed: int = 0, threads: int = 1
) -> Iterator[RunnableSource]:
    """Open a source model of any framework, or a graph that is the source.

    What was imported for it is gone again afterwards where that can be.

    :raises StageError: if it cannot be opened
    """
    if isinstance(model, OnnxModel):
        yield _Graph(open_session(model.path, threads=threads))
    elif isinstance(model, TorchModel):
        import torch

        from shipctl_plugins._sources.torch_source import torch_source

        torch.set_num_threads(threads)
        with torch_source(model, seed=seed) as source:
            yield source
    elif isinstance(model, HuggingFaceModel):
        from shipctl_plugins._sources.hf_source import hf_source

        with hf_source(model, threads=threads) as source:
            yield source
    elif isinstance(model, TensorflowModel):
        from shipctl_plugins._sources.tensorflow_source import tensorflow_source

        with tensorflow_source(model, threads=threads) as source:
            yield source
    elif isinstance(model, SklearnModel):
        from shipctl_plugins._sources.sklearn_source import sklearn_source

        with sklearn_source(model, threads=threads) as source:
            yield source
    else:
        message = f"nothing here opens a {model.kind}"
        raise TypeError(message)
