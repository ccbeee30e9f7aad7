"""For plugin authors: a conformance kit, tiny real artifacts, and pytest fixtures.

A stage is checked by one class::

    from shipctl.testing import StageConformance

    class TestMyStage(StageConformance):
        stage = "my-stage"

and the fixtures come with one line in `conftest.py`::

    pytest_plugins = ["shipctl.testing.fixtures"]

Only :mod:`~shipctl.testing.conformance` and :mod:`~shipctl.testing.fixtures` need pytest.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shipctl.testing.conformance import StageConformance
    from shipctl.testing.samples import sealed, tiny_dataset, tiny_onnx_model

__all__ = ["StageConformance", "sealed", "tiny_dataset", "tiny_onnx_model"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: `shipctl stages check` lives without pytest."""
    if name == "StageConformance":
        import pytest

        # its assertions then say what they compared, as those in a test file do
        if "shipctl.testing.conformance" not in sys.modules:
            pytest.register_assert_rewrite("shipctl.testing.conformance")
        from shipctl.testing.conformance import StageConformance

        return StageConformance
    if name in __all__:
        from shipctl.testing import samples

        return getattr(samples, name)
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
