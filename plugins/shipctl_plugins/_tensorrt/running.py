"""Running an engine on this machine's GPU with the CUDA driver alone (libcuda), to compare it with its ONNX model."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from shipctl.errors import StageError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


class Cuda:
    """The few calls of the CUDA driver API that a run needs, on the first GPU.

    :raises StageError: when one fails, with the driver's name for it
    """

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._cuda, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorName(status, ctypes.byref(text))
            message = f"{name} fails with {(text.value or b'?').decode()} ({status})"
            raise StageError(message)

    @contextmanager
    def memory(self, size: int) -> Iterator[int]:
        """Give ``size`` bytes of device memory."""
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        try:
            yield pointer.value
        finally:
            self._call("cuMemFree_v2", pointer)

    def upload(self, pointer: int, array: Array) -> None:
        """Copy a contiguous array to the device."""
        self._call(
            "cuMemcpyHtoD_v2",
            ctypes.c_uint64(pointer),
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_size_t(array.nbytes),
        )

    def download(self, array: Array, pointer: int) -> None:
        """Fill a contiguous array from the device, after everything there has ended."""
        self._call("cuCtxSynchronize")
        self._call(
            "cuMemcpyDtoH_v2",
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_uint64(pointer),
            ctypes.c_size_t(array.nbytes),
        )


class Engine:
    """A loaded engine with a context."""

    def __init__(self, module: str, plan: bytes, logger: Any) -> None:
        """``module`` is `tensorrt` or `tensorrt_rtx`.

        :raises StageError: if the engine does not load here
        """
        self._trt = importlib.import_module(module)
        self._cuda = Cuda()
        self._runtime = self._trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            message = f"the engine does not load on this machine's GPU with {module} {self._trt.__version__}"
            raise StageError(message)
        self._context = self._engine.create_execution_context()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # in this order: a context must not outlive its engine
        self._context = self._engine = self._runtime = None

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs for ``feed`` by name, each in the engine's own type and shape.

        :raises StageError: if a shape is outside of the engine's profiles, or the run fails
        """
        from contextlib import ExitStack

        import numpy as np

        inputs = {name: np.ascontiguousarray(array) for name, array in feed.items()}
        for name, array in inputs.items():
            if not self._context.set_input_shape(name, array.shape):
                message = f"input {name!r} of shape {list(array.shape)} is outside of the engine's profile"
                raise StageError(message)
        outputs = {name: self._empty(name) for name in self._names("OUTPUT")}
        with ExitStack() as stack:
            places = {
                name: stack.enter_context(self._cuda.memory(array.nbytes))
                for name, array in {**inputs, **outputs}.items()
            }
            for name, pointer in places.items():
                self._context.set_tensor_address(name, pointer)
            for name, array in inputs.items():
                self._cuda.upload(places[name], array)
            if not self._context.execute_async_v3(0):
                message = "the engine fails while it runs"
                raise StageError(message)
            for name, array in outputs.items():
                self._cuda.download(array, places[name])
        return outputs

    def _names(self, mode: str) -> list[str]:
        wanted = getattr(self._trt.TensorIOMode, mode)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        return [name for name in names if self._engine.get_tensor_mode(name) == wanted]

    def _empty(self, name: str) -> Array:
        import numpy as np

        dtype = self._trt.nptype(self._engine.get_tensor_dtype(name))
        return np.empty(tuple(self._context.get_tensor_shape(name)), dtype)
