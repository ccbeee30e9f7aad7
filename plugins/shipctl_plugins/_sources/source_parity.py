"""Parity between a source model, in its framework, and the ONNX graph that was made of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from shipctl.errors import StageError
from shipctl.signature import Signature
from shipctl.stages.artifacts import Dataset
from shipctl.stages.context import StageContext
from shipctl_plugins._onnx import arrays, graph
from shipctl_plugins._onnx.parity import ExactParityOptions, Parity
from shipctl_plugins._onnx.session import open_session, run_session
from shipctl_plugins._sources.opening import RunnableSource

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

ParityT = TypeVar("ParityT", bound=Parity)


def compare_with_source(
    source: RunnableSource,
    path: Path,
    signature: Signature,
    calibration: Dataset | None,
    options: ExactParityOptions,
    ctx: StageContext,
    measured: ParityT,
) -> ParityT:
    """Ask ``source`` and the graph at ``path`` the same, and add what differs to ``measured``, which is returned.

    They are asked random inputs of several batch sizes, and calibration data where there is some. Inputs of texts
    have no random values: they take calibration data.

    :raises StageError: if one does not run, or answers otherwise than ``signature`` says
    """
    cases = _cases(signature, calibration, options, ctx.seed)
    return compare_cases(source, path, signature, cases, ctx, measured)


def compare_cases(
    source: RunnableSource,
    path: Path,
    signature: Signature,
    cases: Iterable[tuple[str, dict[str, Array]]],
    ctx: StageContext,
    measured: ParityT,
) -> ParityT:
    """Do the same with the inputs in ``cases``, each with its name for reports."""
    session = open_session(path, threads=ctx.threads)
    for case, feed in cases:
        before, after = source.run(feed), run_session(session, feed)
        require(graph.array_differences(before, feed, signature), "the model")
        require(graph.array_differences(after, feed, signature), f"the graph on {case}")
        measured.add(case, before, after)
    return measured


def require(differences: Sequence[str], what: str) -> None:
    """Raise :class:`StageError` where there are differences between ``what`` and its signature."""
    if differences:
        message = f"{what} is not as the signature says: {'; '.join(differences)}; correct the signature or the model"
        raise StageError(message)


def _cases(
    signature: Signature, calibration: Dataset | None, options: ExactParityOptions, seed: int
) -> Iterator[tuple[str, dict[str, Array]]]:
    texts = any(spec.dtype == "string" for spec in signature.inputs)
    if not texts or calibration is None:
        for batch in arrays.batch_sizes(signature, options.batches):
            feed = arrays.random_inputs(signature, batch, seed + 1, options.dimensions)
            yield f"random inputs, batch {batch}", feed
    if calibration is not None:
        yield from arrays.sample_batches(calibration, signature, options.samples, max(options.batches))
