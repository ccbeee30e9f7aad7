"""Everything that a release puts on a cluster, as manifests; nothing is asked of a cluster here.

Per revision a Deployment and a Service of the same name, with what scales and protects them; per app what all its
revisions share. The Services that clients and the preflight use are made by :func:`door` and :func:`preview_service`,
because what they select changes in the course of a release.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shipctl_plugins._kubernetes.app import LABEL_REVISION, App
from shipctl_plugins._kubernetes.manifests import server
from shipctl_plugins._kubernetes.manifests.autoscaling import METRIC, behavior, quantity, revision_query
from shipctl_plugins._kubernetes.manifests.documents import Manifest, files_of, yaml_of
from shipctl_plugins._kubernetes.manifests.network import (
    comparator_egress,
    comparator_ingress,
    egress_rules,
    ingress_rules,
)
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions
from shipctl_plugins._kubernetes.manifests.roles import Rule, operator_rules
from shipctl_plugins._kubernetes.manifests.server import PORTS, Workload
from shipctl_plugins._kubernetes.manifests.templates import Templates, templates_in
from shipctl_plugins._kubernetes.manifests.workers import WORKERS, Worker

__all__ = [
    "ALL",
    "NOBODY",
    "Workload",
    "door",
    "elsewhere",
    "files_of",
    "operator_role",
    "preview_service",
    "revision_objects",
    "shared_objects",
    "yaml_of",
]

ALL = "*"
"""Given to :func:`door` for the pods of all revisions."""
NOBODY = "none"
"""The revision that a closed door selects: no digest begins with these letters."""
COMPONENT = "app.kubernetes.io/component"


def revision_objects(
    options: KubernetesOptions, workload: Workload, *, replicas: int | None = None, base: Path
) -> list[Manifest]:
    """Return what one revision has for itself; the Deployment is the first.

    ``replicas`` None leaves their number out, because it is the autoscaler's or the router's; with an autoscaler it
    always is. ``base`` is the folder that paths of the spec are relative to.

    :raises SpecError: if a template of the project does not work
    """
    app, revision = workload.app, workload.revision
    templates = _templates(options, base)
    metadata = _metadata(app, app.of(revision), **server.labels(workload))
    metadata["annotations"] = server.identity(workload)
    selector = app.pods_of(revision)
    notes = {**metadata["annotations"], **server.remembered(options, workload)}
    objects = [
        templates.one(
            "deployment",
            {**metadata, "annotations": notes},
            options=options,
            replicas=None if options.autoscaling else replicas,
            selector=selector,
            pod={
                "labels": {**options.podLabels, **metadata["labels"], **selector},
                "annotations": {**options.podAnnotations, **metadata["annotations"]},
            },
            service_account=service_account(options, app),
            tolerations=server.tolerations(options),
            args=server.args(options, workload),
            env=server.env(options),
            resources=server.resources(options),
        ),
        _service(templates, metadata, selector, _ports(options, PORTS)),
    ]
    if options.disruptionBudget:
        objects.append(templates.one("poddisruptionbudget", metadata, options=options, selector=selector))
    if options.autoscaling:
        objects.append(_autoscaler(templates, options, workload, metadata))
    return objects


def shared_objects(options: KubernetesOptions, app: App, *, base: Path) -> list[Manifest]:
    """Return what all revisions of an app share, without the Services of :func:`door` and :func:`preview_service`.

    :raises SpecError: if a template of the project does not work
    """
    templates = _templates(options, base)
    objects = []
    if options.serviceAccount.name is None:
        metadata = _metadata(app, app.name)
        if options.serviceAccount.annotations:
            metadata["annotations"] = dict(options.serviceAccount.annotations)
        objects.append(templates.one("serviceaccount", metadata))
    if options.networkPolicy:
        objects.append(
            templates.one(
                "networkpolicy",
                _metadata(app, app.name),
                options=options,
                selector=app.pods,
                ingress=ingress_rules(options, app),
                egress=egress_rules(options),
            )
        )
    if options.ingress:
        metadata = _metadata(app, app.name)
        if options.ingress.annotations:
            metadata["annotations"] = dict(options.ingress.annotations)
        objects.append(templates.one("ingress", metadata, options=options, app=app))
    if options.monitoring:
        objects.append(_monitor(templates, options, app))
    for worker in WORKERS:
        objects += _worker(templates, options, app, worker)
    return objects


def door(options: KubernetesOptions, app: App, revision: str | None, *, base: Path = Path()) -> Manifest:
    """Return the Service that clients use: for one revision, for :data:`ALL`, or (None) for nobody: a closed door."""
    if revision == ALL:
        selector = app.pods
    else:
        selector = app.pods_of(revision) if revision is not None else {**app.pods, LABEL_REVISION: NOBODY}
    metadata = _metadata(app, app.name)
    if options.service.annotations:
        metadata["annotations"] = dict(options.service.annotations)
    ports = _ports(options, {"http": options.service.httpPort, "grpc": options.service.grpcPort})
    settings = {
        name: list(value) if isinstance(value, tuple) else value
        for name in ("loadBalancerSourceRanges", "loadBalancerClass", "externalTrafficPolicy")
        if (value := getattr(options.service, name))
    }
    return _service(_templates(options, base), metadata, selector, ports, options.service.type, settings)


def preview_service(options: KubernetesOptions, app: App, revision: str, *, base: Path = Path()) -> Manifest:
    """Return the Service that reaches the candidate alone before it gets traffic."""
    metadata = _metadata(app, app.preview)
    ports = _ports(options, {name: PORTS[name] for name in ("http", "grpc")})
    return _service(_templates(options, base), metadata, app.pods_of(revision), ports)


def operator_role(
    options: KubernetesOptions,
    app: App,
    *,
    further: Sequence[Rule] = (),
    subjects: tuple[dict[str, str], ...] = (),
    base: Path = Path(),
) -> list[Manifest]:
    """Return the Role of who runs shipctl for this app, and with ``subjects`` (as in a RoleBinding) who has it.

    ``further`` are rules beside those for the objects that are always rendered.

    A cluster's administrator applies it once; shipctl itself never does, as nobody can give himself rights. It does not
    have the labels of :attr:`App.selector`, by which what is not rendered any more is found and deleted.
    """
    templates = _templates(options, base)
    metadata = _metadata(app, app.operator)
    metadata["labels"] = {key: value for key, value in app.labels.items() if key not in app.selector}
    objects = [templates.one("role", metadata, rules=[*operator_rules(options, app), *further])]
    if subjects:
        objects.append(templates.one("rolebinding", metadata, role=metadata["name"], subjects=list(subjects)))
    return objects


def service_account(options: KubernetesOptions, app: App) -> str:
    """Return who the servers' pods are."""
    return options.serviceAccount.name or app.name


def elsewhere(options: KubernetesOptions) -> frozenset[str]:
    """Return what our objects name that is not ours (`ServiceAccount/models`), for the checks of references."""
    name = options.serviceAccount.name
    return frozenset({f"ServiceAccount/{name}"} if name else ())


def _templates(options: KubernetesOptions, base: Path) -> Templates:
    return templates_in((base / Path(options.templates).expanduser()) if options.templates else None)


def _metadata(app: App, name: str, **labels: str) -> dict[str, Any]:
    return {"name": name, "namespace": app.namespace, "labels": {**app.labels, **labels}}


def _ports(options: KubernetesOptions, numbers: Mapping[str, int]) -> list[dict[str, Any]]:
    # kubernetes.io/h2c is what gateways go by (KEP-3726), grpc what Istio does
    grpc = "grpc" if options.router.uses == "istio" else "kubernetes.io/h2c"
    return [
        {
            "name": name,
            "port": number,
            "targetPort": name,
            "protocol": "TCP",
            "appProtocol": grpc if name == "grpc" else "http",
        }
        for name, number in numbers.items()
    ]


def _service(
    templates: Templates,
    metadata: dict[str, Any],
    selector: dict[str, str],
    ports: list[dict[str, Any]],
    kind: str = "ClusterIP",
    settings: dict[str, Any] | None = None,
) -> Manifest:
    return templates.one(
        "service", metadata, selector=selector, ports=ports, type=kind, settings=settings or {}
    )


def _autoscaler(
    templates: Templates, options: KubernetesOptions, workload: Workload, metadata: dict[str, Any]
) -> Manifest:
    wanted = options.autoscaling
    assert wanted is not None  # noqa: S101  (for the type checker: asked for only where there is one)
    given = {"options": options, "deployment": metadata["name"], "behavior": behavior()}
    if wanted.engine == "keda":
        query = revision_query(workload.app, workload.revision)
        threshold = f"{float(wanted.queueTime):g}"
        return templates.one("scaledobject", metadata, query=query, threshold=threshold, **given)
    return templates.one(
        "horizontalpodautoscaler", metadata, metric=METRIC, threshold=quantity(wanted.queueTime), **given
    )


def _monitor(templates: Templates, options: KubernetesOptions, app: App) -> Manifest:
    wanted = options.monitoring
    assert wanted is not None  # noqa: S101  (for the type checker: asked for only where there is one)
    metadata = _metadata(app, app.name)
    metadata["labels"] = {**wanted.labels, **metadata["labels"]}
    return templates.one(
        wanted.engine.replace("-", ""),
        metadata,
        selector=app.pods,
        target_labels=["app.kubernetes.io/instance", "app.kubernetes.io/version", LABEL_REVISION],
        interval=f"{max(math.ceil(float(wanted.interval)), 1)}s",
    )


def _worker(templates: Templates, options: KubernetesOptions, app: App, worker: Worker) -> list[Manifest]:
    settings = worker.options(options)
    if settings is None:
        return []
    name = f"{app.name}-{worker.name}"
    selector = {"app.kubernetes.io/instance": app.name, COMPONENT: worker.name}
    metadata = _metadata(app, name, **selector)
    rules = worker.rules(options, app)
    objects = [templates.one("serviceaccount", metadata)]
    if rules:
        account = {"kind": "ServiceAccount", "name": name, "namespace": app.namespace}
        objects += [
            templates.one("role", metadata, rules=rules),
            templates.one("rolebinding", metadata, role=name, subjects=[account]),
        ]
    objects.append(
        templates.one(
            "worker",
            metadata,
            options=options,
            worker=worker,
            settings=settings,
            command=worker.command(app),
            selector=selector,
            pod={"labels": metadata["labels"]},
            token=bool(rules),
        )
    )
    if worker.ports:
        objects.append(_service(templates, metadata, selector, _ports(options, worker.ports)))
    if worker.ports and options.networkPolicy:
        ingress, egress = comparator_ingress(options, app), comparator_egress(options, app)
        objects.append(
            templates.one(
                "networkpolicy", metadata, options=options, selector=selector, ingress=ingress, egress=egress
            )
        )
    return objects
