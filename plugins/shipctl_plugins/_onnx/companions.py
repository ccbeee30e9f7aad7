"""Files that a graph takes along through all that is done to it: a tokenizer, names of classes."""

from __future__ import annotations

from pathlib import Path

from shipctl.stages.artifacts import OnnxModel
from shipctl.store.files import place_file
from shipctl_plugins._onnx import graph


def companions(model: OnnxModel) -> tuple[str, ...]:
    """Return the paths, in the artifact, of the files that are neither the graph nor its external data.

    :raises StageError: if the graph cannot be read
    """
    if model.root.is_file() or len(model.files) == 1:
        return ()
    tensors = graph.every_tensor(graph.load_model(model.path, external=False).graph)
    own = {graph.external_place(tensor, model.root)[0] for tensor in tensors if graph.is_external(tensor)} | {
        model.path
    }
    return tuple(entry.path for entry in model.files if model.root / entry.path not in own)


def take_companions(model: OnnxModel, folder: Path) -> None:
    """Put the companions of ``model`` into ``folder``, where the graph is that was made from it.

    :raises StageError: if the graph cannot be read
    """
    for path in companions(model):
        place_file(model.root / path, folder / path)
