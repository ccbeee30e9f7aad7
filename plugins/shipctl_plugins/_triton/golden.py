"""Golden samples as a gate: what a server must answer, asked over every protocol, judged by bounds."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from shipctl.errors import StageError
from shipctl.records import Record
from shipctl.signature import Signature
from shipctl.stages.verdicts import Comparison, Outcome, Verdict, compare, worst
from shipctl_plugins._triton.agreement import Agreement
from shipctl_plugins._triton.golden_client import LARGEST_BATCH, Answer, Question

COLUMN_REL_ERROR = 0.05
"""Bound for outputs of one number per sample, whose cosine says little, where no other is given."""


class Tolerance(Record):
    """How far an answer may be from the golden one. The defaults let a quantised model pass that keeps every class."""

    top1: float | None = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Smallest share of samples with the same class (for integers and strings: of equal values).",
    )
    cosine: float | None = Field(
        default=0.98,
        ge=-1,
        le=1,
        description="Smallest cosine similarity between the two answers to any sample.",
    )
    max_abs_error: float | None = Field(
        default=None, ge=0, description="Largest absolute difference of any value."
    )
    max_rel_error: float | None = Field(
        default=None,
        ge=0,
        description="Largest difference as a share of the largest expected magnitude; 5 % for an output of one "
        "number per sample when no error bound is given.",
    )


@dataclass(frozen=True)
class Probe:
    """One recorded request, for a quick look at a server's health without numpy."""

    body: bytes
    header: int
    """Length in bytes of the JSON at the start of ``body``."""


@dataclass(frozen=True)
class Judgement:
    """What the golden samples said about a server."""

    verdicts: tuple[Verdict, ...]
    samples: int
    version: str
    """The version that answered, when all requests were answered by the same."""
    probe: Probe | None

    @property
    def passed(self) -> bool:
        """Whether there are verdicts and all of them pass."""
        return bool(self.verdicts) and worst(verdict.outcome for verdict in self.verdicts) == Outcome.PASS

    @property
    def summary(self) -> str:
        """The first thing that is wrong, for one line of text."""
        wrong = [verdict.message for verdict in self.verdicts if verdict.outcome != Outcome.PASS]
        if not wrong:
            return f"{self.samples} golden samples agree over HTTP and gRPC"
        return wrong[0] + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else "")


def ask_golden(
    endpoints: dict[str, str],
    *,
    model: str,
    signature: Signature,
    max_batch_size: int,
    golden: Path,
    tolerance: Tolerance,
    timeout: float,
    version: int | None = None,
    where: str = "golden",
    subject: str | None = None,
) -> Judgement:
    """Send every golden sample over HTTP and gRPC and judge the answers.

    ``golden`` is an .npz with an array per input and output of ``signature``. A server that cannot be asked, a
    missing array, another shape and NaN are verdicts that do not pass; nothing is raised for them.
    ``timeout`` is in seconds, for everything together.

    :raises StageError: if our own client process fails
    """
    question = golden_question(
        endpoints,
        model=model,
        signature=signature,
        max_batch_size=max_batch_size,
        golden=golden,
        timeout=timeout,
        version=version,
    )
    answers = _ask_in_a_process(question, timeout)
    verdicts = [verdict for answer in answers for verdict in _judge(answer, tolerance, where, subject)]
    versions = {answer.version for answer in answers}
    probes = [
        Probe(base64.b64decode(answer.probe), answer.probe_header) for answer in answers if answer.probe
    ]
    return Judgement(
        verdicts=tuple(verdicts),
        samples=answers[0].samples if answers else 0,
        version=versions.pop() if len(versions) == 1 else "",
        probe=probes[0] if probes else None,
    )


def golden_question(
    endpoints: dict[str, str],
    *,
    model: str,
    signature: Signature,
    max_batch_size: int,
    golden: Path,
    timeout: float,
    version: int | None = None,
) -> Question:
    """Return how the golden samples are asked of a model with this signature."""
    first = {tensor.shape[0] if tensor.shape else 1 for tensor in signature.inputs}
    fixed = max_batch_size == 0 and not any(isinstance(size, str) for size in first)
    sizes = [size for size in first if isinstance(size, int)]
    return Question(
        addresses={"http": endpoints["http"].removeprefix("http://"), "grpc": endpoints["grpc"]},
        model=model,
        version=version,
        inputs=tuple(tensor.name for tensor in signature.inputs),
        outputs=tuple(tensor.name for tensor in signature.outputs),
        golden=golden,
        batch=sizes[0] if fixed else min(max_batch_size or LARGEST_BATCH, LARGEST_BATCH),
        fixed_batch=fixed,
        columns=tuple(
            t.name for t in (*signature.inputs, *signature.outputs) if max_batch_size and len(t.shape) == 1
        ),
        timeout=timeout,
    )


def _ask_in_a_process(question: Question, timeout: float) -> list[Answer]:
    command = [sys.executable, "-P", "-m", "shipctl_plugins._triton.golden_client"]
    try:
        done = subprocess.run(
            command,
            input=question.model_dump_json().encode(),
            capture_output=True,
            timeout=timeout,
            check=False,
            start_new_session=True,  # Ctrl-C is shipctl's to act on: no evidence against the model
        )
    except subprocess.TimeoutExpired:
        problem = f"the server did not answer the golden samples within {timeout:g} s"
        return [Answer(protocol=protocol, samples=0, problem=problem) for protocol in question.addresses]
    try:
        return TypeAdapter(list[Answer]).validate_json(done.stdout)
    except ValidationError:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["nothing"]
        message = f"the client for golden samples ended with {done.returncode} and said: {said[0]}"
        raise StageError(message) from None


def _judge(answer: Answer, tolerance: Tolerance, where: str, subject: str | None) -> Sequence[Verdict]:
    protocol = {"http": "HTTP", "grpc": "gRPC"}[answer.protocol]
    if answer.problem:
        gate = f"{where} over {protocol}"
        return [
            Verdict(gate=gate, outcome=Outcome.FAIL, message=f"{gate}: {answer.problem}", subject=subject)
        ]
    verdicts: list[Verdict] = []
    for name, found in answer.outputs.items():
        verdicts += _judge_output(f"{where} {name} over {protocol}", found, tolerance, subject)
    return verdicts


def _judge_output(gate: str, found: Agreement, tolerance: Tolerance, subject: str | None) -> list[Verdict]:
    if found.problem:
        return [Verdict(gate=gate, outcome=Outcome.FAIL, message=f"{gate}: {found.problem}", subject=subject)]
    max_rel_error = tolerance.max_rel_error
    if found.is_column and max_rel_error is None and tolerance.max_abs_error is None:
        max_rel_error = COLUMN_REL_ERROR
    verdicts = []
    if found.top1 is not None and tolerance.top1 is not None:
        verdicts.append(compare(f"{gate}: agreement", found.top1, ">=", tolerance.top1, subject=subject))
    if found.max_abs_error is not None:  # an output of floating-point numbers
        bounds: tuple[tuple[str, float | None, Comparison, float | None], ...] = (
            ("cosine", found.cosine, ">=", tolerance.cosine),
            ("max abs error", found.max_abs_error, "<=", tolerance.max_abs_error),
            ("max rel error", found.max_rel_error, "<=", max_rel_error),
        )
        verdicts += [
            compare(f"{gate}: {metric}", value, comparison, bound, subject=subject)
            for metric, value, comparison, bound in bounds
            if bound is not None
        ]
    if not verdicts:
        message = (
            f"{gate}: no bound applies to this output; set one of top1, cosine, max_abs_error, max_rel_error"
        )
        verdicts.append(Verdict(gate=gate, outcome=Outcome.ERROR, message=message, subject=subject))
    return verdicts
