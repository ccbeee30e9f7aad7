"""A recorded answer: the same, or the same but for what batching does to the last digits."""

from __future__ import annotations

import base64
import struct

import pytest

from shipctl_plugins._triton.probe import Tensor, _agree


def tensor(*values: float, datatype: str = "FP32", code: str = "f") -> Tensor:
    raw = struct.pack(f"<{len(values)}{code}", *values)
    return Tensor(datatype=datatype, shape=(1, len(values)), data=base64.b64encode(raw).decode())


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (tensor(10.0, -1.0), True),
        (tensor(10.0, -1.1), True),
        (tensor(10.0, -1.3), False),
        (tensor(10.0, float("nan")), False),
        (tensor(10.0, float("inf")), False),
        (tensor(10.0, -1.0, 0.0), False),
        (tensor(10.0, -1.0, datatype="FP64", code="d"), False),
    ],
)
def test_numbers_agree_within_two_percent_of_the_largest(now: Tensor, expected: bool) -> None:
    assert _agree(now, tensor(10.0, -1.0)) is expected


def test_labels_agree_exactly() -> None:
    assert _agree(tensor(7, datatype="INT64", code="q"), tensor(7, datatype="INT64", code="q"))
    assert not _agree(tensor(8, datatype="INT64", code="q"), tensor(7, datatype="INT64", code="q"))
