"""The objects of the tree, for the two ways in which revisions replace one another where nobody shifts weights.

`rolling`: one Deployment of the app's name, whose pods the cluster itself replaces, a few at a time. `bluegreen`: a
Deployment per revision, and a Service that selects one of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shipctl.release.strategy import Strategy
from shipctl.release.surge import Surge
from shipctl_plugins._gitops.tree import SHARED, Files
from shipctl_plugins._kubernetes.app import App
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions
from shipctl_plugins._kubernetes.manifests.render import (
    Workload,
    door,
    files_of,
    revision_objects,
    shared_objects,
)

Manifest = dict[str, Any]

_OF_THE_APP = frozenset({"Deployment", "PodDisruptionBudget", "HorizontalPodAutoscaler", "ScaledObject"})
"""Kinds of which a rolling app has one, under its own name, and not one per revision."""


def revision_manifests(
    options: KubernetesOptions, workload: Workload, strategy: Strategy, base: Path
) -> list[Manifest]:
    """Return the objects of one revision.

    :raises SpecError: if a template of the project does not work
    """
    objects = revision_objects(options, workload, replicas=options.replicas, base=base)
    if strategy.name != "rolling":
        return objects
    return [_rolling(one, workload.app, strategy.surge or Surge()) for one in objects]


def shared_manifests(
    options: KubernetesOptions, app: App, selected: str | None, base: Path
) -> list[Manifest]:
    """Return the objects that all revisions share, with the Service that selects one, all, or none of them.

    :raises SpecError: if a template of the project does not work
    """
    return [*shared_objects(options, app, base=base), door(options, app, selected, base=base)]


def files_for(shared: list[Manifest], groups: dict[str, list[Manifest]]) -> Files:
    """Return objects as files, one each."""
    files = Files().adding(files_of(shared), SHARED)
    for revision, objects in groups.items():
        files = files.adding(files_of(objects), revision)
    return files


def closed(app: App) -> Files:
    """Return what stands in the tree where nothing is released: an empty kustomization would be an error."""
    note = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{app.name}-nothing", "namespace": app.namespace, "labels": dict(app.labels)},
        "data": {"note": "nothing is released here"},
    }
    return Files().adding(files_of([note]), SHARED)


def _rolling(one: Manifest, app: App, surge: Surge) -> Manifest:
    """Return an object of a revision as the one of its app."""
    if one["kind"] not in _OF_THE_APP:
        return one
    spec = {**one["spec"]}
    if "scaleTargetRef" in spec:
        spec["scaleTargetRef"] = {**spec["scaleTargetRef"], "name": app.name}
    if "selector" in spec:
        spec["selector"] = {"matchLabels": dict(app.pods)}
    if one["kind"] == "Deployment":
        bounds = {name: _amount(getattr(surge, name)) for name in ("maxSurge", "maxUnavailable")}
        spec["strategy"] = {"type": "RollingUpdate", "rollingUpdate": bounds}
    return {**one, "metadata": {**one["metadata"], "name": app.name}, "spec": spec}


def _amount(amount: float) -> int | str:
    """Return a number of replicas, or a percentage as Kubernetes writes it, which has no fractions."""
    return amount if isinstance(amount, int) else f"{round(float(amount) * 100)}%"
