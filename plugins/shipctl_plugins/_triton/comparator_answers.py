"""Reads answers of Triton as arrays, for :mod:`shipctl_plugins._triton.comparator_arms`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


class UnreadableError(Exception):
    """An answer that is none."""


def from_http(body: bytes, header: int | None) -> dict[str, NDArray[Any]]:
    """Return output to array; ``header`` is the length of the JSON at the start of ``body``, None for all of it.

    :raises UnreadableError: if it is no answer with outputs
    """
    from tritonclient.http import InferResult

    try:
        result = InferResult.from_response_body(body, header_length=header)
        names = [output["name"] for output in result.get_response()["outputs"]]
        return _arrays(result, names)
    except Exception as error:  # whatever the library makes of bytes that a broken server sent
        raise _unreadable(error) from error


def from_grpc(body: bytes) -> dict[str, NDArray[Any]]:
    """Return output to array.

    :raises UnreadableError: as :func:`from_http`
    """
    from tritonclient.grpc import InferResult, service_pb2

    try:
        response = service_pb2.ModelInferResponse.FromString(body)
        result = InferResult(response)
        return _arrays(result, [output.name for output in response.outputs])
    except Exception as error:
        raise _unreadable(error) from error


def _arrays(result: Any, names: list[str]) -> dict[str, NDArray[Any]]:
    found = {name: result.as_numpy(name) for name in names}
    if not found or any(array is None for array in found.values()):
        message = "it has no outputs"
        raise ValueError(message)
    return found


def _unreadable(error: Exception) -> UnreadableError:
    return UnreadableError(f"an answer that cannot be read: {type(error).__name__}: {error}"[:200])
