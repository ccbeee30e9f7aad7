"""Input arrays for models: from data sets, or random from a signature."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import Dataset

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

OTHER_DIMENSION = 8
"""Size that a varying dimension other than the batch gets where nothing says otherwise."""
_TEXTS = "OUS"
"""What numpy calls the kinds of texts."""


def load_arrays(
    dataset: Dataset, signature: Signature | None = None, *, limit: int | None = None
) -> dict[str, Array]:
    """Return the arrays of ``dataset`` by name, with the samples in their first dimension.

    ``signature`` is the model's: columns and images are put into the shapes of its inputs. With ``limit``, no more
    samples than that are read.

    :raises StageError: if the data cannot be read
    """
    if dataset.format == "npz":
        return {name: array[:limit] if array.ndim else array for name, array in _load_npz(dataset).items()}
    from shipctl_plugins._onnx.datasets import read_samples

    return read_samples(dataset, signature, limit=limit)


def _load_npz(dataset: Dataset) -> dict[str, Array]:
    import numpy as np

    if not zipfile.is_zipfile(dataset.path):  # numpy takes it for a pickle, and says how to open that
        message = f"{dataset.role} data {dataset.path.name} is no .npz file, or is cut off; write it with numpy.savez"
        raise StageError(message)
    try:
        with np.load(dataset.path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as exc:
        message = f"{dataset.role} data {dataset.path.name} is not an .npz file of plain arrays: {exc}"
        raise StageError(message) from exc


def model_inputs(arrays: Mapping[str, Array], signature: Signature, role: str) -> dict[str, Array]:
    """Return the arrays that the inputs of ``signature`` take, with the dtypes that it says.

    Each has the samples in its first dimension. Floats are converted to the float type asked for, integers
    to the integer type.

    :raises StageError: if an array is missing, or has another kind, shape or number of samples
    """
    import numpy as np

    missing = [spec.name for spec in signature.inputs if spec.name not in arrays]
    if missing:
        there = ", ".join(sorted(arrays)) or "nothing"
        message = (
            f"{role} data has no array {missing[0]!r}, only {there}; name its arrays after the model's inputs"
        )
        raise StageError(message)
    chosen: dict[str, Array] = {}
    for spec in signature.inputs:
        array = arrays[spec.name]
        if not spec.shape:
            message = f"{role} data has samples in the first dimension, and the model's input {spec} has no dimension"
            raise StageError(message)
        if array.ndim != len(spec.shape) or not _fits(array.shape[1:], spec.shape[1:]):
            message = (
                f"{role} data: array {spec.name!r} has shape {list(array.shape)}, the model takes {spec}"
            )
            raise StageError(message)
        if spec.dtype == "bfloat16":
            message = f"{role} data: the model takes {spec}, which ONNX Runtime takes no arrays of; let it take float32"
            raise StageError(message)
        dtype = np.dtype(object) if spec.dtype == "string" else np.dtype(spec.dtype)
        castable = array.dtype.kind in _TEXTS if spec.dtype == "string" else array.dtype.kind not in _TEXTS
        if not castable or not np.can_cast(array.dtype, dtype, "same_kind"):
            message = f"{role} data: array {spec.name!r} is {array.dtype}, the model takes {spec}"
            raise StageError(message)
        chosen[spec.name] = array.astype(dtype, copy=False)
    counts = {name: len(array) for name, array in chosen.items()}
    if len(set(counts.values())) > 1:
        message = f"{role} data: the arrays differ in their number of samples: {counts}"
        raise StageError(message)
    return chosen


def require_ranges(inputs: Mapping[str, Array], role: str) -> None:
    """See that ranges can be taken from samples: all finite, and not the same number everywhere.

    One of several inputs may be constant, as a mask is.

    :raises StageError: naming the array and what is wrong with it
    """
    import numpy as np

    floats = {name: array for name, array in inputs.items() if array.dtype.kind == "f" and array.size}
    for name, array in floats.items():
        if not np.isfinite(array).all():
            where = int(np.argmin(np.isfinite(array.reshape(len(array), -1)).all(axis=1)))
            message = (
                f"{role} data: array {name!r} has values that are NaN or infinite (first in sample {where}), "
                "which make no range; remove those samples"
            )
            raise StageError(message)
    if floats and all(array.min() == array.max() for array in floats.values()):
        name, array = next(iter(floats.items()))
        message = (
            f"{role} data: array {name!r} is {array.min():g} everywhere, which makes no range; give samples of "
            "what the model will see"
        )
        raise StageError(message)


def require_samples(inputs: Mapping[str, Array], least: int, role: str) -> None:
    """See that there are enough samples to take ranges from.

    :raises StageError: if they are fewer than ``least``
    """
    samples = len(next(iter(inputs.values())))
    if not samples:
        message = f"{role} data is empty; give some hundred samples of what the model will see"
        raise StageError(message)
    if samples < least:
        message = (
            f"{role} data has {samples} sample{'s' if samples > 1 else ''}, at least {least} are asked for "
            "(`min_samples`); give some hundred of what the model will see"
        )
        raise StageError(message)


def _fits(shape: Sequence[int], declared: Sequence[int | str]) -> bool:
    return all(isinstance(want, str) or have == want for have, want in zip(shape, declared, strict=True))


def fixed_batch(signature: Signature) -> int | None:
    """Return the only batch size that the model takes, or None when the inputs' first dimension varies.

    :raises StageError: if the inputs do not agree on a first dimension
    """
    firsts = {spec.shape[0] if spec.shape else 1 for spec in signature.inputs}
    if len(firsts) > 1:
        shapes = "; ".join(map(str, signature.inputs))
        message = f"the inputs differ in their first dimension, so there is no batch: {shapes}"
        raise StageError(message)
    first = firsts.pop()
    return first if isinstance(first, int) else None


def batches(
    inputs: Mapping[str, Array], size: int, signature: Signature
) -> Iterator[tuple[dict[str, Array], int]]:
    """Yield feeds of at most ``size`` samples, each with the number of samples that count.

    A model with a fixed batch gets exactly that; the last sample fills up what lacks and does not count.
    """
    import numpy as np

    fixed = fixed_batch(signature)
    step = fixed or size
    total = len(next(iter(inputs.values())))
    for start in range(0, total, step):
        feed = {name: array[start : start + step] for name, array in inputs.items()}
        count = min(step, total - start)
        if fixed and count < fixed:
            feed = {
                name: np.concatenate([part, *[part[-1:]] * (fixed - count)]) for name, part in feed.items()
            }
        yield feed, count


def batch_sizes(signature: Signature, wanted: Sequence[int]) -> tuple[int, ...]:
    """Return ``wanted``, or the one size that a model with a fixed batch takes."""
    fixed = fixed_batch(signature)
    return tuple(wanted) if fixed is None else (fixed,)


def random_inputs(
    signature: Signature, batch: int, seed: int, dimensions: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """Return inputs that are the same for the same arguments.

    Floats are standard normal; integers are 0 or 1, which every mask, flag and vocabulary takes. Varying
    dimensions beyond the batch get their size from ``dimensions``, else :data:`OTHER_DIMENSION`.

    :raises StageError: for a dtype that has no random values or that ONNX Runtime takes no arrays of, or if
        ``dimensions`` names one that no input has
    """
    import numpy as np

    require_dimensions(signature, dimensions or ())
    rng = np.random.default_rng([seed, batch])
    sizes = dict(dimensions or {})
    for spec in signature.inputs:
        if spec.is_batched:
            sizes[str(spec.shape[0])] = batch
    return {spec.name: _random(spec, sizes, rng) for spec in signature.inputs}


def require_dimensions(signature: Signature, names: Iterable[str]) -> None:
    """See that the dimensions that `dimensions` names are there.

    :raises StageError: naming one that varies in no input
    """
    varying = list(
        dict.fromkeys(size for spec in signature.inputs for size in spec.shape if isinstance(size, str))
    )
    if unknown := [name for name in names if name not in varying]:
        there = ", ".join(varying) or "none"
        message = f"`dimensions` names {unknown[0]!r}, which varies in no input of the model; those that do: {there}"
        raise StageError(message)


def have_random_values(signature: Signature) -> bool:
    """Whether there are random values for all inputs."""
    return not any(spec.dtype in {"string", "bfloat16"} for spec in signature.inputs)


def _random(spec: TensorSpec, sizes: Mapping[str, int], rng: np.random.Generator) -> Array:
    import numpy as np

    shape = [sizes.get(size, OTHER_DIMENSION) if isinstance(size, str) else size for size in spec.shape]
    if spec.dtype in {"string", "bfloat16"}:
        message = f"there are no random values for input {spec}; give real data"
        raise StageError(message)
    if np.issubdtype(np.dtype(spec.dtype), np.floating):
        return rng.standard_normal(shape).astype(spec.dtype)
    return rng.integers(0, 2, shape).astype(spec.dtype)


def sample_batches(
    dataset: Dataset, signature: Signature, samples: int, size: int
) -> Iterator[tuple[str, dict[str, Array]]]:
    """Yield feeds of ``size`` samples from the first ``samples`` of a data set, each with a name for reports.

    :raises StageError: if the data does not fit the signature or is empty
    """
    data = model_inputs(load_arrays(dataset, signature), signature, dataset.role)
    data = {name: array[:samples] for name, array in data.items()}
    if not len(next(iter(data.values()))):
        message = f"{dataset.role} data is empty; give at least one sample"
        raise StageError(message)
    for start, (feed, _) in enumerate(batches(data, size, signature), start=1):
        yield f"{dataset.role} data, batch {start}", feed
