"""What holds for every test: which ones can run here, and one thread per process."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys

import pytest

# Before numpy or torch is imported, here and in every process that a test starts: more threads than cores make
# tests slow and measurements worthless.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("shipctl")
    group.addoption("--gpu", action="store_true", help="run the tests that need an NVIDIA GPU")
    group.addoption("--cluster", action="store_true", help="run the tests that need a Kubernetes cluster")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    why_not = _why_not(config)
    for item in items:
        for marker, reason in why_not.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _why_not(config: pytest.Config) -> dict[str, str]:
    """Return the markers whose tests cannot run here, with the reason."""
    why_not = {}
    if importlib.util.find_spec("torch") is None:
        why_not["torch"] = "PyTorch is not installed: pip install 'shipctl[torch]'"
    if importlib.util.find_spec("mlflow") is None:
        why_not["mlflow"] = "mlflow-skinny is not installed: pip install 'shipctl[mlflow]'"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        why_not["triton"] = "Triton's server exists for Linux on x86-64 only"
    if not config.getoption("--gpu"):
        why_not["gpu"] = "asks for --gpu"
    if not config.getoption("--cluster"):
        why_not["cluster"] = "asks for --cluster"
    return why_not
