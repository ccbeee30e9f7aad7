"""The inputs on which a rewritten model is compared with the one before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from shipctl.signature import Signature
from shipctl.stages.artifacts import Dataset
from shipctl_plugins._onnx import arrays
from shipctl_plugins._onnx.parity import ExactParityOptions

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


def parity_cases(
    signature: Signature, calibration: Dataset | None, options: ExactParityOptions, seed: int
) -> Iterator[tuple[str, dict[str, Array]]]:
    """Yield random inputs in every batch size, then calibration samples if given, each with a name for reports.

    Inputs of texts have no random values: they take calibration data.

    :raises StageError: if the data does not fit the signature, or there is neither data nor random values
    """
    if calibration is None or arrays.have_random_values(signature):
        for batch in arrays.batch_sizes(signature, options.batches):
            feed = arrays.random_inputs(signature, batch, seed + 1, options.dimensions)
            yield f"random inputs, batch {batch}", feed
    if calibration is not None:
        yield from arrays.sample_batches(calibration, signature, options.samples, max(options.batches))
