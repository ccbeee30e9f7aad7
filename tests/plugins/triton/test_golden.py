"""Golden samples as a gate: how they are cut into requests, and what passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shipctl.errors import StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.verdicts import Outcome
from shipctl_plugins._triton import golden
from shipctl_plugins._triton.agreement import Agreement
from shipctl_plugins._triton.golden import Judgement, Tolerance, ask_golden
from shipctl_plugins._triton.golden_client import Answer, Question, answer, batches

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 3)),),
)
GOOD = Agreement(max_abs_error=0.01, max_rel_error=0.01, cosine=0.99, top1=1.0)


def question(**changes: object) -> Question:
    fields = {
        "addresses": {"http": "127.0.0.1:1", "grpc": "127.0.0.1:1"},
        "model": "m",
        "inputs": ("x",),
        "outputs": ("y",),
        "golden": Path("golden.npz"),
        "batch": 32,
        "timeout": 5.0,
    }
    return Question.model_validate({**fields, **changes})


def judged(found: Agreement | str, tolerance: Tolerance = Tolerance()) -> Judgement:  # noqa: B008  (frozen)
    """Judge one answer per protocol that agrees as ``found``, or has that problem."""
    fields = {"problem": found} if isinstance(found, str) else {"outputs": {"y": found}}
    answers = [
        Answer.model_validate({"protocol": p, "samples": 12, "version": "1", **fields})
        for p in ("http", "grpc")
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(golden, "_ask_in_a_process", lambda question, timeout: answers)
        return ask_golden(
            {"http": "http://127.0.0.1:1", "grpc": "127.0.0.1:1"},
            model="m",
            signature=SIGNATURE,
            max_batch_size=8,
            golden=Path("golden.npz"),
            tolerance=tolerance,
            timeout=1.0,
        )


@pytest.mark.parametrize(
    ("samples", "changes", "sizes"),
    [
        (12, {}, [1, 3, 8]),
        (70, {}, [1, 3, 32, 32, 2]),
        (5, {"batch": 2}, [1, 2, 2]),
        (6, {"batch": 2, "fixed_batch": True}, [2, 2, 2]),
        (1, {}, [1]),
        (0, {}, []),
    ],
)
def test_samples_are_asked_at_several_batch_sizes(
    samples: int, changes: dict[str, object], sizes: list[int]
) -> None:
    parts = list(batches(samples, question(**changes)))
    assert [part.stop - part.start for part in parts] == sizes


def test_agreement_within_the_bounds_passes() -> None:
    judgement = judged(GOOD)
    assert judgement.passed
    assert judgement.version == "1"
    assert judgement.summary == "12 golden samples agree over HTTP and gRPC"
    assert [verdict.message for verdict in judgement.verdicts] == [
        "golden y over HTTP: agreement 1 >= 1",
        "golden y over HTTP: cosine 0.99 >= 0.98",
        "golden y over gRPC: agreement 1 >= 1",
        "golden y over gRPC: cosine 0.99 >= 0.98",
    ]


@pytest.mark.parametrize(
    ("found", "tolerance", "message"),
    [
        ("shape", {}, "golden over HTTP: shape"),
        (
            Agreement(problem="1 of 6 values are NaN or infinite"),
            {},
            "golden y over HTTP: 1 of 6 values are NaN or infinite",
        ),
        (
            Agreement(max_abs_error=1, cosine=0.99, top1=0.9),
            {},
            "golden y over HTTP: agreement 0.9 is not >= 1",
        ),
        (Agreement(max_abs_error=1, cosine=0.9, top1=1), {}, "golden y over HTTP: cosine 0.9 is not >= 0.98"),
        (GOOD, {"max_abs_error": 0.001}, "golden y over HTTP: max abs error 0.01 is not <= 0.001"),
        (
            Agreement(max_abs_error=1, max_rel_error=0.06, cosine=1.0, is_column=True),
            {},
            "golden y over HTTP: max rel error 0.06 is not <= 0.05",
        ),
        (
            Agreement(max_abs_error=1, max_rel_error=None, cosine=1.0, is_column=True),
            {},
            "golden y over HTTP: max rel error is missing, <= 0.05 was asked for",
        ),
        (Agreement(top1=0.5), {}, "golden y over HTTP: agreement 0.5 is not >= 1"),
        (
            Agreement(top1=1.0),
            {"top1": None},
            (
                "golden y over HTTP: no bound applies to this output; set one of top1, cosine, max_abs_error, "
                "max_rel_error"
            ),
        ),
    ],
)
def test_anything_else_does_not(found: Agreement | str, tolerance: dict[str, float], message: str) -> None:
    judgement = judged(found, Tolerance.model_validate(tolerance))
    assert not judgement.passed
    first = next(verdict.message for verdict in judgement.verdicts if verdict.outcome != Outcome.PASS)
    assert first == message
    assert judgement.summary.startswith(message)


def test_no_verdicts_at_all_do_not_pass() -> None:
    assert not Judgement((), 0, "", None).passed


def test_missing_array_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "golden.npz", x=np.zeros((2, 4)))
    answers = answer(question(golden=tmp_path / "golden.npz"))
    assert {found.problem for found in answers} == {"the golden samples have no array 'y'; they have x"}


def test_unequal_numbers_of_samples_are_a_problem(tmp_path: Path) -> None:
    np.savez(tmp_path / "golden.npz", x=np.zeros((2, 4)), y=np.zeros((3, 3)))
    answers = answer(question(golden=tmp_path / "golden.npz"))
    assert {found.problem for found in answers} == {
        "the golden arrays differ in their number of samples: [2, 3]"
    }


def test_server_that_is_not_there_fails_over_both_protocols(tmp_path: Path) -> None:
    np.savez(tmp_path / "golden.npz", x=np.zeros((2, 4), np.float32), y=np.zeros((2, 3), np.float32))
    judgement = ask_golden(
        {"http": "http://127.0.0.1:1", "grpc": "127.0.0.1:1"},
        model="m",
        signature=SIGNATURE,
        max_batch_size=8,
        golden=tmp_path / "golden.npz",
        tolerance=Tolerance(),
        timeout=20.0,
    )
    assert [verdict.outcome for verdict in judgement.verdicts] == [Outcome.FAIL, Outcome.FAIL]
    assert [verdict.gate for verdict in judgement.verdicts] == ["golden over HTTP", "golden over gRPC"]


def test_client_that_breaks_is_an_error_with_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match=r"^the client for golden samples ended with 1 and said: FileNotFoundError: "
    ):
        ask_golden(
            {"http": "http://127.0.0.1:1", "grpc": "127.0.0.1:1"},
            model="m",
            signature=SIGNATURE,
            max_batch_size=8,
            golden=tmp_path / "absent.npz",
            tolerance=Tolerance(),
            timeout=20.0,
        )
