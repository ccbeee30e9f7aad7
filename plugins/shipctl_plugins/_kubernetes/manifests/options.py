"""What a spec may say about a target in a cluster; the parts stand in :mod:`._kubernetes.parts`."""

from __future__ import annotations

import os
from typing import Self, TypeVar

from pydantic import Field, model_validator

from shipctl.release.references import Named as PluginName
from shipctl.release.references import Reference
from shipctl.release.target import TargetOptions
from shipctl.spec.fields import Text, fault
from shipctl.spec.models import StoreSpec
from shipctl.spec.units import Duration
from shipctl_plugins._kubernetes.api.access import Access
from shipctl_plugins._kubernetes.app import App, dns_label
from shipctl_plugins._kubernetes.manifests.fields import (
    Annotations,
    AppName,
    Flag,
    Image,
    KubernetesVersion,
    Labels,
    PlainText,
    PlainVariable,
    Selector,
    Subdomain,
)
from shipctl_plugins._kubernetes.manifests.parts import (
    AutoscalingOptions,
    ComparatorOptions,
    DisruptionOptions,
    IngressOptions,
    MonitoringOptions,
    NetworkPolicyOptions,
    ResourceOptions,
    ServiceAccountOptions,
    ServiceOptions,
    Toleration,
    WorkerOptions,
)
from shipctl_plugins._triton.golden import Tolerance


class KubernetesOptions(Access, TargetOptions):
    """What runs in the cluster, how it is reached, and who watches it. The defaults are what a platform team wants."""

    name: AppName | None = Field(
        default=None,
        description="What the Service is called, and everything else after it; left out, the pipeline's name with the "
        "environment's behind it.",
    )
    image: Image = Field(
        default="nvcr.io/nvidia/tritonserver:24.10-py3",
        description="Image of the Triton server; its command has to be `tritonserver`.",
    )
    imagePullSecrets: tuple[Subdomain, ...] = Field(  # noqa: N815
        default=(), description="Secrets of the namespace by which the image is pulled."
    )
    replicas: int = Field(
        default=2,
        ge=1,
        le=1000,
        strict=True,
        description="Pods of each revision; an autoscaler begins with them.",
    )
    resources: ResourceOptions = Field(
        default=ResourceOptions(),
        description="What one pod takes; `shipctl plan` checks that a release fits.",
    )
    nodeSelector: Selector = Field(  # noqa: N815
        default_factory=dict,
        description="Labels that a node must have, such as nvidia.com/gpu.product: NVIDIA-L4.",
    )
    tolerations: tuple[Toleration, ...] = Field(
        default=(), description="Taints of nodes that the pods put up with."
    )
    runtimeClassName: Subdomain | None = Field(  # noqa: N815
        default=None, description="How containers are run, such as nvidia."
    )
    priorityClassName: Subdomain | None = Field(  # noqa: N815
        default=None, description="Who has to make room for whom."
    )
    runAsUser: int | None = Field(  # noqa: N815
        default=1000,
        ge=1,
        strict=True,
        description="Number of the user in the containers; null where the cluster gives one, as OpenShift does.",
    )
    podLabels: Labels = Field(  # noqa: N815
        default_factory=dict, description="Further labels of the pods."
    )
    podAnnotations: Annotations = Field(  # noqa: N815
        default_factory=dict, description="Further annotations of the pods."
    )
    env: dict[PlainVariable, PlainText] = Field(
        default_factory=dict,
        description="Environment variables of the server. Secrets come from credentialsSecret and never stand here.",
    )
    args: tuple[Flag, ...] = Field(
        default=(), description="Further flags of tritonserver, such as --log-verbose=1."
    )
    serviceAccount: ServiceAccountOptions = Field(  # noqa: N815
        default=ServiceAccountOptions(), description="Who the pods are."
    )
    service: ServiceOptions = Field(
        default=ServiceOptions(), description="The Service by which clients reach the model."
    )
    ingress: IngressOptions | None = Field(
        default=None, description="How HTTP clients outside of the cluster reach it; none by default."
    )
    router: PluginName = Field(
        default=Reference(uses="replicas"),
        description="What distributes the traffic: replicas (needs nothing), service, gateway-api or istio; a name, or "
        "`{uses: NAME, with: OPTIONS}`.",
    )
    autoscaling: AutoscalingOptions | None = Field(
        default=None, description="Pods by how long requests wait; left out, always `replicas`."
    )
    monitoring: MonitoringOptions | None = Field(
        default=None, description="What the Prometheus operator is to scrape; none by default."
    )
    networkPolicy: NetworkPolicyOptions | None = Field(  # noqa: N815
        default=NetworkPolicyOptions(),
        description="Who reaches the pods, and whom they reach; null for no policy.",
    )
    disruptionBudget: DisruptionOptions | None = Field(  # noqa: N815
        default=DisruptionOptions(),
        description="How many pods a node drain may take at once; null for no budget.",
    )
    longestRequest: Duration = Field(  # noqa: N815
        default=Duration("30s"),
        description="How long a request may take; a pod that ends finishes those that it has for so long.",
    )
    drain: Duration = Field(
        default=Duration("10s"),
        description="How long a pod that ends still takes new requests, until every client knows that it does.",
    )
    startup: Duration = Field(
        default=Duration("10m"),
        description="How long a pod may take to fetch the model, load it, and be ready.",
    )
    modelRepository: Text | None = Field(  # noqa: N815
        default=None,
        description="Where Triton reads published repositories from, without the digest, such as "
        "s3://bucket/prefix; left out, the spec's store.",
    )
    storeEndpoint: Text | None = Field(  # noqa: N815
        default=None,
        description="http(s)://host:port of the store as the cluster sees it; left out, that of the spec's store.",
    )
    storeRegion: Text | None = Field(  # noqa: N815
        default=None, description="The store's region; left out, that of the spec's store."
    )
    credentialsSecret: Subdomain | None = Field(  # noqa: N815
        default=None,
        description="A Secret of the namespace with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
        "(and AWS_SESSION_TOKEN) for the store; left out, the service account's identity.",
    )
    templates: Text | None = Field(
        default=None,
        description="A folder whose files replace the templates of the same name (deployment.yaml.j2, …), relative "
        "to the spec.",
    )
    watchdog: WorkerOptions | None = Field(
        default=None,
        description="Runs in the cluster, and puts traffic back when who releases is gone; needs an image.",
    )
    comparator: ComparatorOptions | None = Field(
        default=None,
        description="Runs in the cluster, and compares the answers to copies of requests; needs an image.",
    )
    preflight_timeout: Duration = Field(
        default=Duration("120s"), description="How long loading and answering may take in a preflight, each."
    )
    golden: Tolerance = Field(
        default=Tolerance(), description="How far an answer may be from the golden one."
    )
    kubernetesVersion: KubernetesVersion = Field(  # noqa: N815
        default="1.34", description="What manifests are checked against where no cluster is asked."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (
            self.autoscaling
            and not self.autoscaling.minReplicas <= self.replicas <= self.autoscaling.maxReplicas
        ):
            raise fault(
                f"{self.replicas} replicas are not within minReplicas {self.autoscaling.minReplicas} and maxReplicas "
                f"{self.autoscaling.maxReplicas} of autoscaling; change one of them"
            )
        if self.autoscaling and self.router.uses == "replicas":
            raise fault(
                "the router 'replicas' makes shares of numbers of pods, which an autoscaler would change; remove "
                "autoscaling, or choose the router service, gateway-api or istio"
            )
        return self


def app_of(
    options: KubernetesOptions, pipeline: str, environment: str | None, namespace: str | None = None
) -> App:
    """Return what the pipeline is called in the cluster; ``namespace`` is what the kubeconfig says without options.

    Every environment has objects of its own, so that two may share a namespace.
    """
    name = options.name or dns_label(f"{pipeline}-{environment}" if environment else pipeline)
    return App(
        name=name,
        namespace=options.namespace or namespace or "default",
        pipeline=pipeline,
        environment=environment,
    )


OptionsT = TypeVar("OptionsT", bound=KubernetesOptions)


def with_store(options: OptionsT, store: StoreSpec | None) -> OptionsT:
    """Return the options with endpoint and region of the spec's store where they do not say them themselves.

    Servers get the region from them, and the network policy the port at which the store listens.
    """
    if options.modelRepository is not None or store is None or not store.uri.startswith("s3://"):
        return options
    outside = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    found = {
        "storeEndpoint": options.storeEndpoint or store.endpoint or outside,
        "storeRegion": options.storeRegion or store.region,
    }
    return options.model_copy(update=found)
