"""The signature of a model: its named inputs and outputs with dtype and shape."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from shipctl.records import Record

DType = Literal[
    "float16", "float32", "float64", "bfloat16",
    "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64",
    "bool", "string",
]  # fmt: skip
Symbol = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Dimension = Annotated[int, Field(ge=1)] | Symbol


class TensorSpec(Record):
    """One input or output tensor."""

    name: str = Field(min_length=1, description="The tensor's name in the graph.")
    dtype: DType = Field(description="The element type, by its numpy name.")
    shape: tuple[Dimension, ...] = Field(
        description="The dimensions in order: a positive number, or a name for one that varies, such as 'batch'."
    )

    @property
    def is_batched(self) -> bool:
        """Whether the first dimension varies."""
        return bool(self.shape) and isinstance(self.shape[0], str)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


class Signature(Record):
    """All inputs and outputs of a model, in the order of the graph."""

    inputs: tuple[TensorSpec, ...] = Field(min_length=1, description="The tensors that a caller sends.")
    outputs: tuple[TensorSpec, ...] = Field(min_length=1, description="The tensors that a caller gets back.")

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        for side, tensors in (("input", self.inputs), ("output", self.outputs)):
            twice = [name for name, count in Counter(t.name for t in tensors).items() if count > 1]
            if twice:
                message = f"{side} {twice[0]!r} is declared twice; give every {side} a name of its own"
                raise ValueError(message)
        return self

    @property
    def is_batched(self) -> bool:
        """Whether every tensor's first dimension is the same varying one."""
        first = {tensor.shape[0] if tensor.is_batched else None for tensor in (*self.inputs, *self.outputs)}
        return len(first) == 1 and None not in first
