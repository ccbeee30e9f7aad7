"""A recorded question and its answer: whether a served model still answers, without numpy, in milliseconds.

Health endpoints are not enough: after the process behind a model has died, Triton still says that it is ready.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import struct
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import Field

from shipctl.records import Record
from shipctl.store.files import write_atomic
from shipctl_plugins._triton.api import TritonApi, TritonApiError
from shipctl_plugins._triton.golden import Probe

_HEADER = "inference-header-content-length"
_FLOATS = {"FP16": "e", "FP32": "f", "FP64": "d"}
_SLACK = 0.02
"""Share of the largest magnitude: other requests in the same dynamic batch may change the last digits."""
_PATIENCE = 10
"""How many times longer than it took when it was recorded an answer may take."""


class Tensor(Record):
    """One output as it was answered."""

    datatype: str = Field(description="Triton's name of the element type.")
    shape: tuple[int, ...] = Field(description="The dimensions.")
    data: str = Field(description="The raw bytes, base64.")


class RecordedProbe(Record):
    """A request and the answer that was judged good."""

    body: str = Field(description="The request's body, base64.")
    header: int = Field(description="Length in bytes of the JSON at its start.")
    version: str = Field(description="The version that answered.")
    outputs: dict[str, Tensor] = Field(description="What it answered.")
    seconds: float = Field(default=0.0, ge=0, description="How long that took.")


def record_probe(api: TritonApi, model: str, probe: Probe, path: Path) -> None:
    """Ask ``probe`` of whatever answers unversioned requests and keep the answer.

    :raises TritonApiError: if there is none
    """
    began = time.monotonic()
    version, outputs = _send(api, model, probe.body, probe.header)
    kept = RecordedProbe(
        body=base64.b64encode(probe.body).decode(),
        header=probe.header,
        version=version,
        outputs=outputs,
        seconds=time.monotonic() - began,
    )
    write_atomic(path, kept.model_dump_json().encode())


def answers_as_recorded(api: TritonApi, model: str, path: Path) -> bool:
    """Whether unversioned requests are answered by the recorded version with (nearly) the recorded answer."""
    try:
        kept = RecordedProbe.model_validate_json(path.read_bytes())
        patient = dataclasses.replace(api, timeout=max(api.timeout, _PATIENCE * kept.seconds))
        version, outputs = _send(patient, model, base64.b64decode(kept.body), kept.header)
    except (OSError, ValueError, KeyError, TritonApiError):
        return False
    return (
        version == kept.version
        and outputs.keys() == kept.outputs.keys()
        and all(_agree(outputs[name], kept.outputs[name]) for name in outputs)
    )


def _send(api: TritonApi, model: str, body: bytes, header: int) -> tuple[str, dict[str, Tensor]]:
    """Return the version that answered and its outputs (Triton's binary tensor data extension)."""
    headers = {"Inference-Header-Content-Length": str(header), "Content-Type": "application/octet-stream"}
    status, content, said = api.request("POST", f"/v2/models/{quote(model, safe='')}/infer", body, headers)
    start = int(said.get(_HEADER, len(content)))
    answer: dict[str, Any] = json.loads(content[:start])
    if "outputs" not in answer:
        raise TritonApiError(str(answer.get("error", "no outputs")), status)
    outputs = {}
    for output in answer["outputs"]:
        stop = start + int(output["parameters"]["binary_data_size"])
        raw = base64.b64encode(content[start:stop]).decode()
        outputs[output["name"]] = Tensor(datatype=output["datatype"], shape=output["shape"], data=raw)
        start = stop
    return str(answer["model_version"]), outputs


def _agree(now: Tensor, then: Tensor) -> bool:
    if (now.datatype, now.shape) != (then.datatype, then.shape):
        return False
    if now.data == then.data:
        return True
    code = _FLOATS.get(now.datatype)
    if code is None:
        return False
    values, expected = (
        [value for (value,) in struct.iter_unpack(f"<{code}", base64.b64decode(tensor.data))]
        for tensor in (now, then)
    )
    scale = max((abs(value) for value in expected), default=0.0)
    return all(
        math.isfinite(value) and abs(value - wanted) <= _SLACK * scale
        for value, wanted in zip(values, expected, strict=True)
    )
