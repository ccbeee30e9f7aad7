"""The NVIDIA GPUs of this machine, asked of the driver itself (libcuda), without a framework."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the CUDA driver API."""

CAPABILITIES = {
    "t4": "7.5", "a100": "8.0", "a30": "8.0", "a10": "8.6", "a10g": "8.6", "a16": "8.6", "a2": "8.6", "a40": "8.6",
    "rtx3060": "8.6", "rtx3070": "8.6", "rtx3080": "8.6", "rtx3090": "8.6", "rtxa6000": "8.6",
    "l4": "8.9", "l40": "8.9", "l40s": "8.9", "rtx4060": "8.9", "rtx4070": "8.9", "rtx4080": "8.9", "rtx4090": "8.9",
    "rtx5060": "12.0", "rtx5070": "12.0", "rtx5080": "12.0", "rtx5090": "12.0",
    "h100": "9.0", "h200": "9.0", "gh200": "9.0", "b200": "10.0", "gb200": "10.0",
}  # fmt: skip
"""Compute capability by GPU name, without spaces (developer.nvidia.com/cuda-gpus)."""


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    name: str
    """As the driver calls it, such as `NVIDIA L4`."""
    capability: str
    """Compute capability, such as 8.9."""

    def is_called(self, wanted: str) -> bool:
        """Whether its name has ``wanted`` in it as whole words (L4 is not in `NVIDIA L40S`)."""
        return f" {_words(wanted)} " in f" {_words(self.name)} "


def _words(name: str) -> str:
    return " ".join(name.lower().replace("-", " ").replace("_", " ").split())


def capability_of(name: str) -> str | None:
    """Return the compute capability of a GPU by its name, None for one that is not known here."""
    return CAPABILITIES.get(_words(name).replace(" ", "").removeprefix("nvidia").removeprefix("geforce"))


@cache
def gpus() -> tuple[Gpu, ...]:
    """Return this machine's GPUs in the driver's order; none where there is no driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    return tuple(_gpu(cuda, index) for index in range(count.value))


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        numbers.append(str(value.value))
    return Gpu(name.value.decode(errors="replace"), ".".join(numbers))
