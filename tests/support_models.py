"""Variants of a trained model for tests, made from its safetensors file alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path

LAST_LAYER = ("head.weight", "head.bias")
"""State-dict names of the digits network's output layer."""


def write_second_version(src: Path, dst: Path) -> None:
    """Write to ``dst`` a good second version of ``src``: every float tensor scaled by noise of 0.5 %.

    Logits move by about 1 %, classes and accuracy stay; the same ``src`` gives the same bytes.
    """
    rng = np.random.default_rng(1)
    tensors = load_file(src)
    for name in sorted(tensors):
        tensor = tensors[name]
        if np.issubdtype(tensor.dtype, np.floating):
            tensors[name] = tensor * (1 + 0.005 * rng.standard_normal(tensor.shape)).astype(tensor.dtype)
    save_file(tensors, dst)


def write_bad_version(src: Path, dst: Path) -> None:
    """Write to ``dst`` a version of ``src`` that loads and looks sound per tensor, but answers wrongly.

    The rows of the output layer move down by one: each digit is taken for the next one.
    """
    tensors = load_file(src)
    for name in LAST_LAYER:
        tensors[name] = np.roll(tensors[name], 1, axis=0)
    save_file(tensors, dst)
