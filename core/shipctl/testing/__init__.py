"""For plugin authors: a conformance kit, tiny real artifacts, and pytest fixtures.

A stage is checked by one class::

    from shipctl.testing import StageConformance

    class TestMyStage(StageConformance):
        stage = "my-stage"

a store by one that has a fixture `store`::

    from shipctl.testing import StoreConformance

    class TestMyStore(StoreConformance): ...

(likewise :class:`TargetConformance`, :class:`DelegatedConformance`, :class:`RouterConformance` and
:class:`MetricProviderConformance`), and the fixtures come with one line in `conftest.py`::

    pytest_plugins = ["shipctl.testing.fixtures"]

Only :mod:`~shipctl.testing.conformance` and :mod:`~shipctl.testing.fixtures` need pytest.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shipctl.testing.conformance import StageConformance
    from shipctl.testing.delegated import DelegatedConformance
    from shipctl.testing.metrics import MetricProviderConformance
    from shipctl.testing.routers import RouterConformance
    from shipctl.testing.samples import sealed, tiny_dataset, tiny_onnx_model
    from shipctl.testing.stores import StoreConformance
    from shipctl.testing.targets import TargetConformance

__all__ = [
    "DelegatedConformance",
    "MetricProviderConformance",
    "RouterConformance",
    "StageConformance",
    "StoreConformance",
    "TargetConformance",
    "sealed",
    "tiny_dataset",
    "tiny_onnx_model",
]
_SUITES = {
    "StageConformance": "shipctl.testing.conformance",
    "StoreConformance": "shipctl.testing.stores",
    "MetricProviderConformance": "shipctl.testing.metrics",
    "RouterConformance": "shipctl.testing.routers",
    "TargetConformance": "shipctl.testing.targets",
    "DelegatedConformance": "shipctl.testing.delegated",
}
_BENEATH = ("shipctl.testing.routers",)
"""What suites import of each other."""


def __getattr__(name: str) -> Any:
    """Import what is asked for: `shipctl stages check` lives without pytest."""
    if name in _SUITES:
        import pytest

        # its assertions then say what they compared, as those in a test file do
        for module in (*_BENEATH, _SUITES[name]):
            if module not in sys.modules:
                pytest.register_assert_rewrite(module)
        return getattr(import_module(_SUITES[name]), name)
    if name in __all__:
        from shipctl.testing import samples

        return getattr(samples, name)
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
