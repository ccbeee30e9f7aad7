"""Input arrays for models: from data sets, or random from a signature."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import Dataset

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

OTHER_DIMENSION = 8
"""Size that a varying dimension other than the batch gets where nothing says otherwise."""


def load_arrays(dataset: Dataset) -> dict[str, Array]:
    """Return the arrays of ``dataset`` by name.

    :raises StageError: if the file is not an .npz of plain arrays
    """
    import numpy as np

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
        if array.ndim != len(spec.shape) or not _fits(array.shape[1:], spec.shape[1:]):
            message = (
                f"{role} data: array {spec.name!r} has shape {list(array.shape)}, the model takes {spec}"
            )
            raise StageError(message)
        if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
            message = f"{role} data: array {spec.name!r} is {array.dtype}, the model takes {spec}"
            raise StageError(message)
        chosen[spec.name] = array.astype(spec.dtype, copy=False)
    counts = {name: len(array) for name, array in chosen.items()}
    if len(set(counts.values())) > 1:
        message = f"{role} data: the arrays differ in their number of samples: {counts}"
        raise StageError(message)
    return chosen


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

    :raises StageError: for a dtype that has no random values or that ONNX Runtime takes no arrays of
    """
    import numpy as np

    rng = np.random.default_rng([seed, batch])
    sizes = dict(dimensions or {})
    for spec in signature.inputs:
        if spec.is_batched:
            sizes[str(spec.shape[0])] = batch
    return {spec.name: _random(spec, sizes, rng) for spec in signature.inputs}


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
    data = model_inputs(load_arrays(dataset), signature, dataset.role)
    data = {name: array[:samples] for name, array in data.items()}
    if not len(next(iter(data.values()))):
        message = f"{dataset.role} data is empty; give at least one sample"
        raise StageError(message)
    for start, (feed, _) in enumerate(batches(data, size, signature), start=1):
        yield f"{dataset.role} data, batch {start}", feed
