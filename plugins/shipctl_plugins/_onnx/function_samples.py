"""Samples that a user's Python function returns or yields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl.signature import Signature
from shipctl.stages.artifacts import Dataset
from shipctl_plugins._sources.importing import describe, imported_function

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

MOST_BYTES = 8 * 2**30
"""A function that yields more than this is one that does not end."""


def call_function(dataset: Dataset, signature: Signature | None, limit: int | None) -> dict[str, Array]:
    """Call the data set's function without arguments and return its arrays by name.

    It returns a mapping from name to array, with the samples in the first dimension, or it yields (or returns a
    list of) mappings: batches of samples, or single samples, whose arrays lack the first dimension of the model's
    inputs. Without a signature, what is yielded are batches. Arrays are anything that numpy makes one of.

    :raises StageError: if it fails, yields nothing, or something that is not numbers or does not fit the rest
    """
    base = dataset.root.parent if dataset.root.is_file() else dataset.root
    what = f"{dataset.role} data {dataset.function}"
    with imported_function(dataset.function, dataset.root, f"{dataset.role} data") as function:
        try:
            found = _taken(function(), what, signature, limit)
        except StageError:
            raise
        except Exception as exc:  # a user's function may raise anything
            message = f"{what} fails: {describe(exc, base)}"
            raise StageError(message) from exc
    _same_count(found, what)
    return {name: array[:limit] for name, array in found.items()}


def _taken(made: Any, what: str, signature: Signature | None, limit: int | None) -> dict[str, Array]:
    if isinstance(made, Mapping):
        return _mapping(made, what)
    if isinstance(made, Iterable) and not isinstance(made, str | bytes):
        return _gathered(made, what, signature, limit)
    message = f"{what} returns a {type(made).__name__}; return a mapping from name to array, or yield such"
    raise StageError(message)


def _gathered(
    made: Iterable[Any], what: str, signature: Signature | None, limit: int | None
) -> dict[str, Array]:
    import numpy as np

    parts: dict[str, list[Array]] = {}
    samples, held = 0, 0
    for index, item in enumerate(made, start=1):
        where = f"{what}, item {index}"
        if not isinstance(item, Mapping):
            message = f"{where} is a {type(item).__name__}; yield mappings from name to array"
            raise StageError(message)
        arrays = _mapping(item, where)
        if _is_single(arrays, signature, where):
            arrays = {name: array[None] for name, array in arrays.items()}
        samples += _same_count(arrays, where)
        _same_form(parts, arrays, where)
        for name, array in arrays.items():
            parts.setdefault(name, []).append(array)
            held += array.nbytes
        if limit is not None and samples >= limit:
            break
        if held > MOST_BYTES:
            message = f"{what} has yielded {samples} samples, {held / 2**30:.1f} GiB, and not ended; let it end sooner"
            raise StageError(message)
    if not parts:
        message = f"{what} yields nothing; give at least one sample"
        raise StageError(message)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _mapping(item: Mapping[Any, Any], where: str) -> dict[str, Array]:
    """Return the arrays of one mapping, all of them numbers."""
    import numpy as np

    if not item:
        message = f"{where} has no arrays; give one for each input of the model"
        raise StageError(message)
    found: dict[str, Array] = {}
    for name, value in item.items():
        try:
            array = np.asarray(value)
        except ValueError as exc:  # lists of different lengths
            message = f"{where}: {name!r} is no array: {exc}"
            raise StageError(message) from exc
        if not isinstance(name, str) or array.dtype.kind not in "biuf":
            message = f"{where}: {name!r} is {array.dtype} of shape {list(array.shape)}; give arrays of numbers by name"
            raise StageError(message)
        found[name] = array
    return found


def _is_single(arrays: Mapping[str, Array], signature: Signature | None, where: str) -> bool:
    """Whether the arrays are one sample, without the model's first dimension."""
    ranks = {spec.name: len(spec.shape) for spec in signature.inputs} if signature else {}
    missing = [name for name in ranks if name not in arrays]
    if missing:
        there = ", ".join(sorted(arrays))
        message = (
            f"{where} has no array {missing[0]!r}, only {there}; name its arrays after the model's inputs"
        )
        raise StageError(message)
    less = {name: rank - arrays[name].ndim for name, rank in ranks.items()}
    if set(less.values()) - {0, 1} or len(set(less.values())) > 1:
        shapes = ", ".join(f"{name} {list(arrays[name].shape)}" for name in ranks)
        wanted = "; ".join(map(str, signature.inputs)) if signature else ""
        message = f"{where} is neither a batch nor one sample: {shapes}; the model takes {wanted}"
        raise StageError(message)
    return 1 in less.values()


def _same_count(arrays: Mapping[str, Array], where: str) -> int:
    """Return the number of samples, which all arrays have to have."""
    bare = [name for name, array in arrays.items() if not array.ndim]
    if bare:
        message = f"{where}: {bare[0]!r} is one number; give an array with the samples in its first dimension"
        raise StageError(message)
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        message = f"{where}: the arrays differ in their number of samples: {counts}"
        raise StageError(message)
    return next(iter(counts.values()))


def _same_form(parts: Mapping[str, list[Array]], arrays: Mapping[str, Array], where: str) -> None:
    """See that an item has the arrays of those before it, with their shapes."""
    if parts and set(parts) != set(arrays):
        message = f"{where} has {', '.join(sorted(arrays))}, those before it {', '.join(sorted(parts))}"
        raise StageError(message)
    for name, before in parts.items():
        if before[0].shape[1:] != arrays[name].shape[1:]:
            message = (
                f"{where}: {name!r} has shape {list(arrays[name].shape[1:])} a sample, "
                f"those before it {list(before[0].shape[1:])}"
            )
            raise StageError(message)
