"""Samples in a .csv file: a header, then a line per sample."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import Dataset

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

LABEL = "label"
_SHOWN = 8


@dataclass(frozen=True)
class _Column:
    """The cells of one column, and where they stand."""

    name: str
    cells: Sequence[str]
    lines: Sequence[int]
    file: str

    def fault(self, index: int, wrong: str) -> StageError:
        return StageError(f"{self.file}:{self.lines[index]}: column {self.name!r} {wrong}")


def read_csv(dataset: Dataset, signature: Signature | None, limit: int | None) -> dict[str, Array]:
    """Return the columns of a .csv file as the inputs of a model, and its labels as `label`.

    Inputs `[batch]` or `[batch, 1]` take the columns that are called like them. A model with one other input
    takes all columns but the label's, in their order (`[batch, 4]` takes four, `[batch, 1, 8, 8]` sixty-four).
    Without a signature each column is an array `[samples]`. Labels are int64 where all are whole numbers, float64
    where all are numbers, else the index of each text in the sorted texts.

    :raises StageError: naming the line and column that is empty or no number, or the input that gets no column
    """
    columns = _columns(dataset, limit)
    found: dict[str, Array] = {}
    taken = {spec.name for spec in signature.inputs} if signature else set()
    name = dataset.reading.label or (LABEL if LABEL in columns and LABEL not in taken else None)
    if name is not None:
        if name not in columns:
            message = (
                f"{dataset.role} data {dataset.path.name} has no column {name!r} for the labels, "
                f"only {_some(list(columns))}"
            )
            raise StageError(message)
        found[LABEL] = _labels(columns.pop(name))
    if signature is None:
        return found | {name: _numbers(column, None) for name, column in columns.items()}
    if all(_is_scalar(spec) and spec.name in columns for spec in signature.inputs):
        named = {spec.name: _numbers(columns[spec.name], spec.dtype) for spec in signature.inputs}
        return found | {
            spec.name: named[spec.name].reshape(-1, *([1] * (len(spec.shape) - 1)))
            for spec in signature.inputs
        }
    return found | _in_order(columns, signature, dataset)


def label_texts(dataset: Dataset) -> list[str] | None:
    """Return the sorted texts that labels are numbered by; None where they are numbers, or there are none.

    :raises StageError: if the file cannot be read
    """
    column = _columns(dataset, None).get(dataset.reading.label or LABEL)
    if column is None or any(_is_number(cell) for cell in column.cells):
        return None
    return sorted({cell.strip() for cell in column.cells})


def _columns(dataset: Dataset, limit: int | None) -> dict[str, _Column]:
    path, role = dataset.path, dataset.role
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            _check_header(header, role, path.name)
            rows, lines = [], []
            for row in islice((row for row in reader if row), limit):
                if len(row) != len(header):
                    message = f"{path.name}:{reader.line_num}: {len(row)} cells, the header has {len(header)}"
                    raise StageError(message)
                rows.append(row)
                lines.append(reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        message = f"{role} data {path.name} is no .csv file in UTF-8: {exc}"
        raise StageError(message) from exc
    cells = zip(*rows, strict=True) if rows else ([] for _ in header)
    return {
        name: _Column(name, list(column), lines, path.name)
        for name, column in zip(header, cells, strict=True)
    }


def _check_header(header: Sequence[str], role: str, file: str) -> None:
    wrong = ""
    if not header:
        wrong = "is empty"
    elif "" in header:
        wrong = f"has no name for column {header.index('') + 1}"
    elif len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        wrong = f"has two columns {twice!r}"
    elif all(_is_number(name) for name in header):
        wrong = f"begins with numbers ({_some(header)})"
    if wrong:
        message = f"{role} data {file} {wrong}; its first line has to name the columns"
        raise StageError(message)


def _in_order(columns: dict[str, _Column], signature: Signature, dataset: Dataset) -> dict[str, Array]:
    import numpy as np

    where = f"{dataset.role} data {dataset.path.name}"
    if len(signature.inputs) > 1:
        spec = next(spec for spec in signature.inputs if spec.name not in columns or not _is_scalar(spec))
        need = f"no column {spec.name!r}" if spec.name not in columns else "one number a sample"
        message = (
            f"{where} has {need} for the model's input {spec}, its columns are {_some(list(columns))}; "
            "give several inputs as arrays in an .npz file or by a Python function"
        )
        raise StageError(message)
    spec = signature.inputs[0]
    sizes = spec.shape[1:]
    wanted = math.prod(size for size in sizes if isinstance(size, int))
    is_open = any(isinstance(size, str) for size in sizes)
    if (is_open and len(sizes) > 1) or (not is_open and wanted != len(columns)):
        message = (
            f"{where} has {len(columns)} columns beside the label ({_some(list(columns))}), "
            f"the model's input takes {'an open number' if is_open else wanted} a sample: {spec}"
        )
        raise StageError(message)
    parts = [_numbers(column, spec.dtype) for column in columns.values()]
    shape = [len(columns)] if is_open else [int(size) for size in sizes]
    return {spec.name: np.stack(parts, axis=1).reshape(-1, *shape)}


def _numbers(column: _Column, dtype: str | None) -> Array:
    """Return the cells as numbers of ``dtype``; without one, int64 where all are whole, else float64."""
    import numpy as np

    whole = (
        dtype is not None and np.dtype(dtype).kind in "iub" if dtype not in {"string", "bfloat16"} else False
    )
    if dtype == "string":
        return np.array(column.cells, dtype=object)
    if dtype is None or whole:
        try:
            values = np.array([int(cell) for cell in column.cells], dtype=np.int64)
        except (ValueError, OverflowError):
            if whole:
                index = next(i for i, cell in enumerate(column.cells) if not _is_whole(cell))
                wrong = _wrong(column.cells[index], "whole number")
                raise column.fault(index, wrong) from None
        else:
            return _narrowed(column, values, dtype) if dtype is not None else values
    try:
        floats = np.array([float(cell) for cell in column.cells], dtype=np.float64)
    except ValueError:
        index = next(i for i, cell in enumerate(column.cells) if not _is_number(cell))
        raise column.fault(index, _wrong(column.cells[index], "number")) from None
    if not np.isfinite(floats).all():
        index = int(np.argmin(np.isfinite(floats)))
        raise column.fault(index, f"is {column.cells[index]!r}, not a finite number")
    return floats if dtype in {None, "bfloat16"} else floats.astype(dtype)


def _narrowed(column: _Column, values: Array, dtype: str) -> Array:
    import numpy as np

    least, most = (0, 1) if dtype == "bool" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    outside = (values < least) | (values > min(most, np.iinfo(np.int64).max))
    if outside.any():
        index = int(outside.argmax())
        raise column.fault(index, f"is {column.cells[index]}, which is no {dtype}")
    return values.astype(dtype)


def _labels(column: _Column) -> Array:
    """Return labels as int64, float64, or the index of each text among the sorted ones."""
    import numpy as np

    cells = [cell.strip() for cell in column.cells]
    if "" in cells:
        raise column.fault(cells.index(""), "is empty")
    numeric = [_is_number(cell) for cell in cells]
    if all(numeric):
        return _numbers(column, None)
    if any(numeric):
        index = numeric.index(not numeric[0])
        raise column.fault(
            index, f"is {cells[index]!r}: labels before it are {'numbers' if numeric[0] else 'text'}"
        )
    classes = sorted(set(cells))
    places = {name: index for index, name in enumerate(classes)}
    return np.array([places[cell] for cell in cells], dtype=np.int64)


def _is_scalar(spec: TensorSpec) -> bool:
    return bool(spec.shape) and all(size == 1 for size in spec.shape[1:])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_whole(cell: str) -> bool:
    try:
        return -(2**63) <= int(cell) < 2**63
    except ValueError:
        return False


def _wrong(cell: str, what: str) -> str:
    return f"is {cell!r}, not a {what}" if cell.strip() else "is empty"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more
