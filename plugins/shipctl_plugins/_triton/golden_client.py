"""Ask a server for all golden samples, over both protocols, and compare: a process of its own.

``python -m shipctl_plugins._triton.golden_client`` reads a :class:`Question` as JSON from its standard input
and writes a list of :class:`Answer` as JSON to its standard output. That way numpy, gevent and gRPC stay out of
shipctl's own process, and a client that hangs can be killed.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, TypeAdapter

from shipctl.records import Record
from shipctl_plugins._triton.agreement import Agreement, agreement
from shipctl_plugins._triton.client import InferenceError, Protocol, asking, infer_inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIRST_BATCHES = (1, 3)
LARGEST_BATCH = 32


class Question(Record):
    """What to ask, and of whom."""

    addresses: dict[Protocol, str] = Field(description="Protocol to host:port.")
    model: str = Field(description="The model's name.")
    version: int | None = Field(
        default=None, description="Triton's version number; None lets the server choose."
    )
    inputs: tuple[str, ...] = Field(
        description="Names of the input tensors, which are arrays of the golden file."
    )
    outputs: tuple[str, ...] = Field(description="Names of the output tensors, likewise.")
    golden: Path = Field(description="The .npz file; the samples are in the first dimension of each array.")
    batch: int = Field(ge=1, description="Samples per request at most; with `fixed_batch` exactly.")
    fixed_batch: bool = Field(default=False, description="Whether it takes that many and no other number.")
    columns: tuple[str, ...] = Field(
        default=(),
        description="Tensors of one number per sample, which Triton carries with shape (samples, 1).",
    )
    timeout: float = Field(gt=0, description="Seconds per request.")


class Answer(Record):
    """What came of it over one protocol."""

    protocol: Protocol = Field(description="How the server was asked.")
    samples: int = Field(description="How many samples were compared.")
    version: str = Field(default="", description="The version that answered, as the server says.")
    problem: str | None = Field(default=None, description="Why there is no comparison.")
    outputs: dict[str, Agreement] = Field(default_factory=dict, description="Per output, how well it agrees.")
    probe: str = Field(default="", description="Over HTTP: the first request's body, base64.")
    probe_header: int = Field(default=0, description="Length in bytes of the JSON at that body's start.")


def batches(samples: int, question: Question) -> Iterator[slice]:
    """Cut the samples into requests: one, three, then as many as fit, because faults differ by batch size."""
    start = 0
    sizes = iter(() if question.fixed_batch else FIRST_BATCHES)
    while start < samples:
        size = min(next(sizes, question.batch), question.batch)
        yield slice(start, min(start + size, samples))
        start += size


def answer(question: Question) -> list[Answer]:
    """Ask over every protocol of ``question``; problems are in the answers, nothing is raised for them."""
    import numpy as np

    with np.load(question.golden, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in {*question.inputs, *question.outputs} & set(stored.files)}
    if missing := [name for name in (*question.inputs, *question.outputs) if name not in arrays]:
        problem = f"the golden samples have no array {missing[0]!r}; they have {', '.join(sorted(arrays)) or 'none'}"
        return [Answer(protocol=protocol, samples=0, problem=problem) for protocol in question.addresses]
    counts = {len(array) for array in arrays.values()}
    if len(counts) != 1:
        problem = f"the golden arrays differ in their number of samples: {sorted(counts)}"
        return [Answer(protocol=protocol, samples=0, problem=problem) for protocol in question.addresses]
    return [_over(protocol, address, question, arrays) for protocol, address in question.addresses.items()]


def _over(protocol: Protocol, address: str, question: Question, arrays: dict[str, NDArray[Any]]) -> Answer:
    import numpy as np

    samples = len(arrays[question.inputs[0]])
    collected: dict[str, list[NDArray[Any]]] = {name: [] for name in question.outputs}
    versions = set()
    try:
        with asking(
            protocol,
            address,
            question.model,
            question.outputs,
            version=question.version,
            timeout=question.timeout,
        ) as ask:
            for part in batches(samples, question):
                outputs, version = ask(_inputs(question, arrays, part))
                versions.add(version)
                for name, array in outputs.items():
                    collected[name].append(
                        array[:, 0] if name in question.columns and array.ndim > 1 else array
                    )
        compared: dict[str, Agreement] = {}
        for name, parts in collected.items():
            got = np.concatenate(parts) if parts else np.empty(0)
            compared[name] = agreement(arrays[name], got)
    except (InferenceError, ValueError) as error:
        return Answer(protocol=protocol, samples=samples, problem=str(error))
    body, header = request_body(question, arrays) if protocol == "http" else (b"", 0)
    return Answer(
        protocol=protocol,
        samples=samples,
        version=versions.pop() if len(versions) == 1 else ", ".join(sorted(versions)),
        outputs=compared,
        probe=base64.b64encode(body).decode(),
        probe_header=header,
    )


def _inputs(question: Question, arrays: dict[str, NDArray[Any]], part: slice) -> dict[str, NDArray[Any]]:
    """Return what to send for some of the samples."""
    chosen = {name: arrays[name][part] for name in question.inputs}
    return {
        name: array.reshape(-1, 1) if name in question.columns else array for name, array in chosen.items()
    }


def request_body(question: Question, arrays: dict[str, NDArray[Any]], start: int = 0) -> tuple[bytes, int]:
    """Return a request for one sample (or one fixed batch) as the bytes that HTTP carries, and its header's length."""
    from tritonclient import http

    size = question.batch if question.fixed_batch else 1
    first = _inputs(question, arrays, slice(start, start + size))
    wanted = [http.InferRequestedOutput(name) for name in question.outputs]
    body, header = http.InferenceServerClient.generate_request_body(infer_inputs(http, first), outputs=wanted)
    return bytes(body), int(header or len(body))


if __name__ == "__main__":
    answers = answer(Question.model_validate_json(sys.stdin.buffer.read()))
    sys.stdout.buffer.write(TypeAdapter(list[Answer]).dump_json(answers))
