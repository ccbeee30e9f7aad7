"""What holds for every test: which ones can run here, one thread per process, and what is looked up only once."""

from __future__ import annotations

import gc
import importlib.util
import os
import platform
import sys
import sysconfig
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from shipctl.engine import filecache
from support_cluster import control_plane, kube, namespace, why_no_control_plane

__all__ = ["control_plane", "kube", "namespace"]

# Before numpy or torch is imported, here and in every process that a test starts: more threads than cores make
# tests slow and measurements worthless.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine fails no property.
settings.register_profile("shipctl", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shipctl")

# Until all tests are collected, which leaves no garbage.
gc.disable()

LONGEST = (
    "test_kubernetes_traffic.py",
    "test_releases.py",
    "test_models.py",
    "test_local_conformance.py",
    "test_digits_published.py",
    "test_stage_examples.py",
    "test_watchdog.py",
    "test_digits.py",
    "test_k8s_rolling.py",
    "test_real_server.py",
    "test_hf_export.py",
    "test_large_model.py",
    "test_k8s_canary.py",
    "test_kubernetes_conformance.py",
    "test_search.py",
    "test_gitops_cluster.py",
    "test_kubernetes_lost.py",
    "test_kill.py",
    "test_prometheus.py",
    "test_replicas_ratio.py",
    "test_rollout_random.py",
    "test_local_real.py",
    "test_torch_export.py",
    "test_tf2onnx.py",
    "test_local.py",
    "test_failures.py",
    "test_s3_gateway.py",
    "test_superseding.py",
    "test_local_killed.py",
    "test_routing.py",
)
"""Files of half a minute and more, the longest first."""

FRAMEWORKS = ("convert", "onnx", "optimize", "qualify", "sources", "tensorrt_backends", "validate")
"""Folders of tests/plugins whose tests import PyTorch, TensorFlow and their like, each for seconds."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("shipctl")
    group.addoption("--gpu", action="store_true", help="run the tests that need an NVIDIA GPU")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # workers take files in this order: one of minutes that comes last would keep all of them waiting
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    why_not = _why_not(config)
    for item in items:
        for marker, reason in why_not.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object | None:
    """Give workers whole files, and one of them all that import frameworks: once instead of in each."""
    from xdist.scheduler import LoadFileScheduling

    if config.getoption("dist") != "loadfile":
        return None
    scheduling = LoadFileScheduling(config, log)
    file_of: Callable[[str], str] = scheduling._split_scope

    def group_of(nodeid: str) -> str:
        file = file_of(nodeid)
        _, _, place = file.rpartition("tests/plugins/")
        return "frameworks" if place.partition("/")[0] in FRAMEWORKS else file

    scheduling._split_scope = group_of
    scheduler: object = scheduling
    return scheduler


def pytest_collection_finish() -> None:
    # thousands of tests, and what they import, are never garbage: no need to look at them at each collection
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def looked_up_once() -> Iterator[None]:
    """Keep the entry points of what is installed, and what a source text imports, for all plans of this process.

    A command finds both out once. Here hundreds of plans would, each for tens of milliseconds, and always the same.
    What tests put on the path themselves is read each time.
    """
    installed = sysconfig.get_path("purelib")
    distributions, imports = metadata.distributions, filecache._imports
    entry_points: Callable[[metadata.Distribution], metadata.EntryPoints]
    entry_points = vars(metadata.Distribution)["entry_points"].fget
    here = list(distributions(path=[installed]))
    points: dict[str, metadata.EntryPoints] = {}
    imported: dict[bytes, list[str]] = {}

    def distributions_once(**which: Any) -> Iterator[metadata.Distribution]:
        if which:
            yield from distributions(**which)
            return
        for place in sys.path:
            yield from here if place == installed else distributions(path=[place])

    def entry_points_once(distribution: metadata.Distribution) -> metadata.EntryPoints:
        place = str(getattr(distribution, "_path", ""))
        if not place.startswith(installed):
            return entry_points(distribution)
        if place not in points:
            points[place] = entry_points(distribution)
        return points[place]

    def imports_once(path: Path) -> list[str]:
        text = path.read_bytes()
        if text not in imported:
            imported[text] = imports(path)
        return imported[text]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata, "distributions", distributions_once)
        patch.setattr(metadata.Distribution, "entry_points", property(entry_points_once))
        patch.setattr(filecache, "_imports", imports_once)
        yield


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
    no_control_plane = why_no_control_plane()
    if no_control_plane is not None:
        why_not["cluster"] = no_control_plane
    return why_not
