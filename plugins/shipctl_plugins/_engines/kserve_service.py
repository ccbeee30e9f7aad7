"""The InferenceService of KServe.

Fields: github.com/kserve/kserve v0.13.0, `PredictorSpec` and `ComponentExtensionSpec` in pkg/apis/serving/v1beta1. Only
its serverless mode divides requests; pods are Knative's, which also scales them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from shipctl.errors import SpecError
from shipctl.release.strategy import SetWeight, Strategy
from shipctl.release.target import Candidate
from shipctl.release.traffic import WHOLE
from shipctl.spec.models import StoreSpec
from shipctl.stages.context import ReleaseContext
from shipctl.store.depot import REPOSITORIES
from shipctl_plugins._engines.cluster import manifest
from shipctl_plugins._engines.notes import Object, Stride
from shipctl_plugins._kubernetes.app import App
from shipctl_plugins._kubernetes.manifests import server
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions
from shipctl_plugins._kubernetes.manifests.server import Workload
from shipctl_plugins._kubernetes.objects import Kind
from shipctl_plugins._kubernetes.repository import version_number
from shipctl_plugins._kubernetes.state import Entry

INFERENCE_SERVICE = Kind("serving.kserve.io/v1beta1", "InferenceService")
MODE = "serving.kserve.io/deploymentMode"
SERVERLESS = "Serverless"
PERCENT = "canaryTrafficPercent"
PROMOTE = "promote"
_OWN_FLAGS = ("--model-repository", "--model-store", "--http-port", "--grpc-port", "--metrics-port")
"""Flags that KServe's runtime for Triton sets itself."""


def storage_uri(options: KubernetesOptions, store: StoreSpec | None) -> str:
    """Return the URI, as KServe's storage initializer reads it, below which repositories lie by digest.

    The endpoint of an S3 store that is not AWS's stands in the annotation `serving.kserve.io/s3-endpoint` of the
    service account's Secret.

    :raises SpecError: if servers in a cluster cannot read the spec's store
    """
    if options.modelRepository is not None:
        return options.modelRepository.rstrip("/")
    if store is None or not store.uri.startswith("s3://"):
        what = f"the store {store.uri} is" if store is not None else "without `store:` models are"
        message = (
            f"{what} on this machine, where servers in a cluster cannot read: write `store: {{uri: s3://bucket/prefix}}`"
            ", or say with `modelRepository` of the target under which URI they see it"
        )
        raise SpecError(message)
    return f"{store.uri.rstrip('/')}/{REPOSITORIES.rstrip('/')}"


@dataclass(frozen=True)
class Services:
    """Renders for one app; nothing is asked of a cluster."""

    options: KubernetesOptions
    ctx: ReleaseContext
    app: App

    def entry(self, candidate: Candidate, now: float) -> Entry:
        """Return what is remembered of a candidate.

        :raises SpecError: if servers in a cluster cannot read the store
        """
        repository = candidate.repository
        return Entry(
            revision=candidate.revision,
            version=candidate.version,
            model=repository.model,
            digest=repository.digest,
            repository=f"{storage_uri(self.options, self.ctx.store)}/{repository.digest}",
            image=self.options.image,
            number=version_number(repository),
            replicas=self.options.replicas,
            autoscaled=True,
            since=now,
        )

    def predictor(self, entry: Entry) -> Object:
        """Return what KServe runs for a revision."""
        options = self.options
        workload = Workload(
            app=self.app, revision=entry.revision, version=entry.version, model=entry.model,
            repository=entry.repository, digest=entry.digest,
        )  # fmt: skip
        triton: Object = {
            "storageUri": entry.repository,
            "protocolVersion": "v2",
            "image": options.image,
            "resources": server.resources(options),
            "securityContext": _security(options),
            "env": [each for each in server.env(options) if not each["name"].startswith("AWS_")],
        }
        flags = [flag for flag in options.args if not flag.startswith(_OWN_FLAGS)]
        if flags:
            triton["args"] = flags
        most = options.autoscaling.maxReplicas if options.autoscaling is not None else options.replicas
        fewest = options.autoscaling.minReplicas if options.autoscaling is not None else options.replicas
        pod: dict[str, Any] = {
            "serviceAccountName": options.serviceAccount.name,
            "imagePullSecrets": [{"name": name} for name in options.imagePullSecrets],
            "nodeSelector": dict(options.nodeSelector),
            "tolerations": server.tolerations(options),
            "runtimeClassName": options.runtimeClassName,
            "priorityClassName": options.priorityClassName,
        }
        return {
            "labels": {**options.podLabels, **server.labels(workload)},
            "annotations": {**options.podAnnotations, **server.identity(workload)},
            "minReplicas": fewest,
            "maxReplicas": most,
            "timeout": math.ceil(float(options.longestRequest)),
            **{name: value for name, value in pod.items() if value},
            "triton": triton,
        }

    def service(self, predictor: Object, percent: int) -> Object:
        """Return the InferenceService; the share always stands there, or somebody else's would."""
        share = {PERCENT: percent}
        found = manifest(
            self.app, INFERENCE_SERVICE, self.app.name, spec={"predictor": {**predictor, **share}}
        )
        found["metadata"]["annotations"] = {MODE: SERVERLESS}
        return found


def _security(options: KubernetesOptions) -> Object:
    """Return what Knative lets a container say of its rights."""
    user = {} if options.runAsUser is None else {"runAsUser": options.runAsUser}
    return {
        "runAsNonRoot": True,
        **user,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def strides(strategy: Strategy) -> tuple[Stride, ...]:
    """Return the way to everything; the last stride has that."""
    found: list[Stride] = []
    weight = 0
    for index, step in enumerate(strategy.steps):
        if isinstance(step, SetWeight):
            weight = step.setWeight
            found.append(Stride(weight=weight))
            continue
        pause = step.pause.duration
        told = {"asks": f"step {index}"} if pause is None else {"pause": float(pause)}
        if found and not found[-1].pause and not found[-1].asks:
            found[-1] = found[-1].model_copy(update=told)
        else:
            found.append(Stride(weight=weight, **told))
    if not strategy.autoPromotion:
        found.append(Stride(weight=weight, asks=PROMOTE))
    if not found or found[-1].weight < WHOLE:
        found.append(Stride(weight=WHOLE))
    return tuple(found)
