"""Ask a Triton server for named arrays, over HTTP and over gRPC, with NVIDIA's `tritonclient`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from numpy.typing import NDArray

Protocol = Literal["http", "grpc"]
Arrays = Mapping[str, "NDArray[Any]"]
Ask = Callable[[Arrays], tuple[dict[str, "NDArray[Any]"], str]]

_INT32_MAX = 2**31 - 1
_GRPC_OPTIONS = [
    ("grpc.max_send_message_length", _INT32_MAX),
    ("grpc.max_receive_message_length", _INT32_MAX),
    ("grpc.enable_http_proxy", 0),  # gRPC would send even loopback through $http_proxy
]


class InferenceError(Exception):
    """The server refused the request, answered with an error, or not in time."""


@contextmanager
def asking(
    protocol: Protocol,
    address: str,
    model: str,
    outputs: Sequence[str],
    *,
    version: int | None = None,
    timeout: float = 30.0,
) -> Iterator[Ask]:
    """Connect to ``address`` (host:port) and give a function from input arrays to output arrays.

    The function also returns the version that answered: without ``version`` the server chooses. It raises
    :class:`InferenceError`. ``timeout`` is in seconds, per request.
    """
    from tritonclient.utils import InferenceServerException

    client, inputs_of, outputs_of, limit = _connect(protocol, address, timeout)
    wanted = [outputs_of(name) for name in outputs]

    def ask(arrays: Arrays) -> tuple[dict[str, NDArray[Any]], str]:
        try:
            result = client.infer(
                model,
                inputs_of(arrays),
                model_version="" if version is None else str(version),
                outputs=wanted,
                **limit,
            )
            answers = {name: result.as_numpy(name) for name in outputs}
            response = result.get_response()
        except (InferenceServerException, OSError, ValueError) as error:
            raise InferenceError(str(error) or type(error).__name__) from error
        if missing := [name for name, array in answers.items() if array is None]:
            message = f"the answer lacks the output {missing[0]!r}"
            raise InferenceError(message)
        return answers, str(
            response["model_version"] if isinstance(response, dict) else response.model_version
        )

    try:
        yield ask
    finally:
        client.close()


def _connect(protocol: Protocol, address: str, timeout: float) -> tuple[Any, Any, Any, dict[str, float]]:
    """Return a client, how it wraps inputs, how it names outputs, and how it is told its time limit."""
    if protocol == "grpc":
        from tritonclient import grpc as module

        client: Any = module.InferenceServerClient(address, channel_args=_GRPC_OPTIONS)
        limit = {"client_timeout": timeout}
    else:
        from tritonclient import http as module

        client = module.InferenceServerClient(address, connection_timeout=timeout, network_timeout=timeout)
        limit = {}
    return client, lambda arrays: infer_inputs(module, arrays), module.InferRequestedOutput, limit


def infer_inputs(module: Any, arrays: Arrays) -> list[Any]:
    """Wrap arrays as the `InferInput` objects of ``module`` (`tritonclient.http` or `tritonclient.grpc`)."""
    import numpy as np
    from tritonclient.utils import np_to_triton_dtype

    wrapped = []
    for name, array in arrays.items():
        sent = np.char.encode(array, "utf-8").astype(object) if array.dtype.kind == "U" else array
        tensor = module.InferInput(name, list(sent.shape), np_to_triton_dtype(sent.dtype))
        tensor.set_data_from_numpy(np.ascontiguousarray(sent))
        wrapped.append(tensor)
    return wrapped
