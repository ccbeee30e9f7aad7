"""Samples that are no .npz file: columns of a .csv file, images in folders, what a Python function makes."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from shipctl.errors import UnavailableError
from shipctl.signature import Signature
from shipctl.stages.artifacts import Dataset
from shipctl.stages.context import CheckContext
from shipctl_plugins._onnx.csv_samples import label_texts, read_csv
from shipctl_plugins._onnx.function_samples import call_function
from shipctl_plugins._onnx.image_samples import NEEDS, folder_names, read_images

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


def read_samples(
    dataset: Dataset, signature: Signature | None = None, *, limit: int | None = None
) -> dict[str, Array]:
    """Return the arrays of ``dataset`` by name, with the samples in their first dimension.

    Columns and images get the names, shapes and dtypes of the model's inputs, as ``signature`` says them; labels
    (the label column, the names of the folders) become the array `label`. With ``limit``, at most so many samples:
    the first ones, but of images some from all over the folder, since they are sorted by class.

    :raises StageError: naming the line, image or sample that cannot be read or does not fit
    :raises UnavailableError: if what reads images is not installed
    """
    if dataset.format == "csv":
        return read_csv(dataset, signature, limit)
    if dataset.format == "images":
        return read_images(dataset, signature, limit)
    return call_function(dataset, signature, limit)


def class_names(dataset: Dataset) -> list[str] | None:
    """Return the names whose places in this order are the labels; None where labels are numbers, or there are none.

    :raises StageError: if the data cannot be read
    """
    if dataset.format == "csv":
        return label_texts(dataset)
    if dataset.format == "images":
        return folder_names(dataset) or None
    return None


def check_readable(ctx: CheckContext) -> None:
    """Look, at plan time, for what it takes to read the data that goes into a stage.

    :raises UnavailableError: if it is not installed
    """
    for sources in ctx.inputs.values():
        for source in sources:
            data = source.artifact
            if isinstance(data, Dataset) and data.format == "images" and find_spec("PIL") is None:
                message = f"{data.role} {NEEDS}"
                raise UnavailableError(message)
