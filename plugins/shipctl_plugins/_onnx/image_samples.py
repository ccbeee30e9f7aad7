"""Samples that are images: a folder per class, or one folder without labels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shipctl.errors import StageError, UnavailableError
from shipctl.signature import Signature
from shipctl.spec.models import ImageReading
from shipctl.stages.artifacts import Dataset

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

NAME = "image"
"""The array's name where no model says another."""
NEEDS = "data is images, which Pillow reads: pip install 'shipctl[images]'"
_MODES: dict[int, Literal["L", "RGB"]] = {1: "L", 3: "RGB"}
_IMAGE_RANK, _PLAIN_RANK = 4, 3


@dataclass(frozen=True)
class _Form:
    """What an image has to become."""

    name: str
    height: int
    width: int
    mode: Literal["L", "RGB"]
    dtype: str
    flat: bool
    """Gray without a dimension for its channel: `[batch, height, width]`."""


def read_images(dataset: Dataset, signature: Signature | None, limit: int | None) -> dict[str, Array]:
    """Return the images as the model's only input, and the number of each one's folder as `label`.

    The classes are the folders in order of their names; images of a flat folder have no labels. An image is made
    RGB or gray by the input's channels, resized (bilinear) to `image.size` or the input's height and width, and for
    an input of floats multiplied by `image.scale`, less `image.mean`, divided by `image.std`, each in the order of
    the channels. An input of uint8 gets the 8-bit values as they are.

    :raises StageError: naming the image that cannot be read, or what the spec does not say
    :raises UnavailableError: without Pillow
    """
    import numpy as np

    try:
        import PIL.Image  # noqa: F401
    except ImportError as exc:
        message = f"{dataset.role} {NEEDS}"
        raise UnavailableError(message) from exc
    paths = _paths(dataset)
    classes = _classes(paths, dataset.role)
    if limit is not None and limit < len(paths):
        # sorted by class, the first ones would all be of one
        paths = [paths[index] for index in np.linspace(0, len(paths) - 1, limit).round().astype(int)]
    reading = dataset.reading.image
    form = _form(signature, reading, dataset.role)
    base = dataset.root.parent if dataset.root.is_file() else dataset.root
    pixels = np.stack([_pixels(base / path, path, form) for path in paths])
    found = {form.name: _values(pixels, form, reading, dataset.role)}
    if classes:
        found["label"] = np.array([classes.index(path.partition("/")[0]) for path in paths], dtype=np.int64)
    return found


def folder_names(dataset: Dataset) -> list[str]:
    """Return the classes in the order of their numbers; none for images without labels."""
    return _classes(_paths(dataset), dataset.role)


def _paths(dataset: Dataset) -> list[str]:
    return [entry.path for entry in dataset.files] or _listed(dataset.root)


def _listed(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def _classes(paths: Sequence[str], role: str) -> list[str]:
    beside = [path for path in paths if "/" not in path]
    if beside and len(beside) < len(paths):
        message = (
            f"{role} data: {beside[0]} stands beside folders with images; put it into the folder of its class"
        )
        raise StageError(message)
    return [] if beside else sorted({path.partition("/")[0] for path in paths})


def _form(signature: Signature | None, reading: ImageReading, role: str) -> _Form:
    if signature is None:
        if reading.size is None:
            message = (
                f"{role} data is images of no known size; write `image: {{size: [height, width]}}` below it"
            )
            raise StageError(message)
        return _Form(NAME, *reading.size, "RGB", "float32", flat=False)
    spec = signature.inputs[0]
    rank = len(spec.shape)
    if len(signature.inputs) > 1 or rank not in {_PLAIN_RANK, _IMAGE_RANK}:
        inputs = "; ".join(map(str, signature.inputs))
        message = f"{role} data is images, but the model does not take one image a sample: {inputs}"
        raise StageError(message)
    flat = rank == _PLAIN_RANK
    axes = {"nchw": (2, 3, 1), "nhwc": (1, 2, 3)}[reading.layout] if not flat else (1, 2, 0)
    height, width, channels = (spec.shape[axis] for axis in axes)
    count = 1 if flat else channels if isinstance(channels, int) else 3
    if count not in _MODES:
        message = (
            f"{role} data: the model's input has {count} channels in layout {reading.layout}: {spec}; "
            "images are gray (1) or RGB (3), and `image: {layout: nhwc}` says that channels come last"
        )
        raise StageError(message)
    size = reading.size or (height, width)
    if not (isinstance(size[0], int) and isinstance(size[1], int)):
        message = f"{role} data: the size of images varies in {spec}; write `image: {{size: [height, width]}}` below it"
        raise StageError(message)
    return _Form(spec.name, size[0], size[1], _MODES[count], spec.dtype, flat)


def _pixels(path: Path, shown: str, form: _Form) -> Array:
    """Return uint8 values: `[height, width]` for gray, `[height, width, 3]` for RGB."""
    import numpy as np
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd palettes and metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                _require_8_bits(image.mode, shown)
                converted = image.convert(form.mode)
                if converted.size != (form.width, form.height):
                    converted = converted.resize((form.width, form.height), Image.Resampling.BILINEAR)
                return np.asarray(converted, dtype=np.uint8)
    except StageError:
        raise
    except Exception as exc:  # Pillow's readers raise whatever broken bytes make them raise
        message = f"{shown} is no image that can be read: {str(exc) or type(exc).__name__}".replace(
            str(path.parent) + "/", ""
        )
        raise StageError(message) from exc


def _require_8_bits(mode: str, shown: str) -> None:
    if mode.startswith(("I", "F")):
        message = f"{shown} has pixels of more than 8 bits (mode {mode}); convert it"
        raise StageError(message)


def _values(pixels: Array, form: _Form, reading: ImageReading, role: str) -> Array:
    import numpy as np

    if not form.dtype.startswith(("float", "bfloat")):
        plain = ImageReading()
        asked = [name for name in ("scale", "mean", "std") if getattr(reading, name) != getattr(plain, name)]
        if form.dtype != "uint8" or asked:
            wrong = f"`image.{asked[0]}` is for floats" if asked else "images are floats or uint8"
            message = f"{role} data: the model's input {form.name!r} is {form.dtype}; {wrong}"
            raise StageError(message)
        values = pixels
    else:
        channels = 1 if form.mode == "L" else 3
        values = pixels.astype(np.float32) * np.float32(reading.scale)
        for name, per_channel in (("mean", reading.mean), ("std", reading.std)):
            if per_channel and len(per_channel) not in {1, channels}:
                message = f"{role} data: `image.{name}` has {len(per_channel)} values for {channels} channels"
                raise StageError(message)
        if 0 in reading.std:
            message = f"{role} data: `image.std` has a 0, by which nothing can be divided"
            raise StageError(message)
        if reading.mean:
            values = values - np.array(reading.mean, dtype=np.float32)
        if reading.std:
            values = values / np.array(reading.std, dtype=np.float32)
    if form.flat:
        return values
    shaped = values[..., None] if form.mode == "L" else values
    return np.ascontiguousarray(shaped.transpose(0, 3, 1, 2)) if reading.layout == "nchw" else shaped
