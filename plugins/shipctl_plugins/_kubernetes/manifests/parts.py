"""The parts of the options of a target in a cluster, each for objects of one kind."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from shipctl.records import Record
from shipctl.spec.fields import Text, fault
from shipctl.spec.units import Duration
from shipctl_plugins._kubernetes.manifests.fields import (
    Annotations,
    Host,
    Image,
    Labels,
    Network,
    PortNumber,
    Quantity,
    ResourceName,
    Selector,
    Subdomain,
)


class ResourceOptions(Record):
    """What one pod takes."""

    cpu: Quantity = Field(default="1", description="CPU cores that it is sure of, such as 500m.")
    cpuLimit: Quantity | None = Field(  # noqa: N815
        default=None, description="CPU cores that it never gets more of; left out, it may use what is idle."
    )
    memory: Quantity = Field(
        default="2Gi", description="Main memory, requested and limited, with sharedMemory in it, such as 4Gi."
    )
    sharedMemory: Quantity = Field(  # noqa: N815
        default="256Mi", description="Size of /dev/shm, which the Python backend talks through."
    )
    scratch: Quantity = Field(
        default="4Gi", description="Size of /tmp, where Triton unpacks what it fetches from the store."
    )
    gpu: int = Field(default=0, ge=0, le=64, strict=True, description="GPUs, or slices of one.")
    gpuResource: ResourceName = Field(  # noqa: N815
        default="nvidia.com/gpu", description="What the nodes call them, such as nvidia.com/mig-1g.10gb."
    )


class Toleration(Record):
    """A taint that pods put up with, as in a Pod's `tolerations`."""

    key: Text | None = Field(default=None, description="The taint's key; left out with operator Exists, any.")
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="Whether its value counts.")
    value: str | None = Field(default=None, description="The taint's value.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="The taint's effect; left out, any."
    )
    tolerationSeconds: int | None = Field(  # noqa: N815
        default=None, ge=0, strict=True, description="For NoExecute: how long."
    )

    @model_validator(mode="after")
    def _meaningful(self) -> Self:
        if self.operator == "Exists" and self.value is not None:
            raise fault(f"operator Exists takes no value, and here is {self.value!r}; remove one of them")
        if self.key is None and self.operator == "Equal":
            raise fault(
                "a toleration without a key fits every taint and needs `operator: Exists`; add it, or a key"
            )
        return self


class ServiceAccountOptions(Record):
    """Who the pods are."""

    name: Subdomain | None = Field(
        default=None, description="One that is there already; left out, one of the app's name is made."
    )
    annotations: Annotations = Field(
        default_factory=dict,
        description="Its annotations, such as eks.amazonaws.com/role-arn for access to the store.",
    )

    @model_validator(mode="after")
    def _whose(self) -> Self:
        if self.name and self.annotations:
            raise fault(
                f"the service account {self.name!r} is not made by shipctl, so its annotations are not either; remove "
                "name or annotations"
            )
        return self


class ServiceOptions(Record):
    """The Service by which clients reach the model."""

    type: Literal["ClusterIP", "LoadBalancer", "NodePort"] = Field(
        default="ClusterIP", description="From where it is reached."
    )
    annotations: Annotations = Field(
        default_factory=dict, description="Its annotations, by which clouds configure load balancers."
    )
    loadBalancerSourceRanges: tuple[Network, ...] = Field(  # noqa: N815
        default=(), description="LoadBalancer only: ranges of addresses that may come in, such as 10.0.0.0/8."
    )
    loadBalancerClass: Text | None = Field(  # noqa: N815
        default=None, description="LoadBalancer only: which implementation makes it."
    )
    externalTrafficPolicy: Literal["Cluster", "Local"] | None = Field(  # noqa: N815
        default=None, description="LoadBalancer and NodePort only: Local keeps clients' addresses."
    )
    httpPort: PortNumber = Field(default=8000, description="Port of HTTP.")  # noqa: N815
    grpcPort: PortNumber = Field(default=8001, description="Port of gRPC.")  # noqa: N815

    @model_validator(mode="after")
    def _fits_type(self) -> Self:
        if self.type != "LoadBalancer" and (self.loadBalancerSourceRanges or self.loadBalancerClass):
            raise fault(
                f"loadBalancerSourceRanges and loadBalancerClass are for `type: LoadBalancer`, not {self.type}; remove "
                "them"
            )
        if self.type == "ClusterIP" and self.externalTrafficPolicy:
            raise fault(
                "externalTrafficPolicy is for LoadBalancer and NodePort; remove it from the ClusterIP Service"
            )
        if self.httpPort == self.grpcPort:
            raise fault(f"httpPort and grpcPort are both {self.httpPort}; change one")
        return self


class IngressOptions(Record):
    """How HTTP clients outside of the cluster reach the model."""

    host: Host = Field(description="The host name, such as digits.example.com.")
    path: Text = Field(default="/", pattern=r"^/\S*$", description="What paths begin with.")
    className: Subdomain | None = Field(  # noqa: N815
        default=None, description="Which controller serves it; left out, the cluster's default."
    )
    tlsSecret: Subdomain | None = Field(  # noqa: N815
        default=None, description="The Secret with its certificate; left out, no TLS."
    )
    annotations: Annotations = Field(
        default_factory=dict, description="Its annotations, such as cert-manager.io/cluster-issuer."
    )


class AutoscalingOptions(Record):
    """Pods by how long requests wait for their turn in Triton."""

    engine: Literal["hpa", "keda"] = Field(
        default="hpa",
        description="hpa: a HorizontalPodAutoscaler, which needs the Prometheus adapter with our rule; keda: a "
        "ScaledObject, which needs KEDA and serverAddress.",
    )
    minReplicas: int = Field(default=2, ge=1, strict=True, description="Fewest pods.")  # noqa: N815
    maxReplicas: int = Field(default=10, ge=1, le=1000, strict=True, description="Most pods.")  # noqa: N815
    queueTime: Duration = Field(  # noqa: N815
        default=Duration("10ms"), description="Mean time that requests wait; above it pods are added."
    )
    serverAddress: Text | None = Field(  # noqa: N815
        default=None,
        pattern=r"^https?://\S+$",
        description="keda only: Prometheus as KEDA reaches it, such as http://prometheus.monitoring:9090.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.minReplicas > self.maxReplicas:
            raise fault(f"minReplicas {self.minReplicas} is above maxReplicas {self.maxReplicas}; change one")
        if (self.engine == "keda") != (self.serverAddress is not None):
            missing = (
                "engine keda asks Prometheus itself; write serverAddress: http://prometheus.monitoring:9090"
            )
            useless = "serverAddress is for engine keda; remove it, or write engine: keda"
            raise fault(missing if self.engine == "keda" else useless)
        if float(self.queueTime) < 1e-3:  # noqa: PLR2004  (a metric of an HPA has three decimals of a second)
            raise fault(
                f"queueTime {self.queueTime} is below 1ms, which an autoscaler cannot tell from 0; write 1ms"
            )
        return self


class MonitoringOptions(Record):
    """What the Prometheus operator is to scrape."""

    engine: Literal["pod-monitor", "service-monitor"] = Field(
        default="pod-monitor", description="The kind of object that is made."
    )
    interval: Duration = Field(default=Duration("15s"), description="How often pods are asked.")
    labels: Labels = Field(
        default_factory=dict,
        description="Labels by which the operator finds it, such as release: prometheus.",
    )


class Peer(Record):
    """Pods or addresses, as in a NetworkPolicy: what is given must all hold."""

    namespaceSelector: Selector | None = Field(  # noqa: N815
        default=None, description="Labels of their namespace; left out, this namespace."
    )
    podSelector: Selector | None = Field(  # noqa: N815
        default=None, description="Labels of the pods; left out, all of the namespace."
    )
    cidr: Network | None = Field(default=None, description="A range of addresses, such as 10.0.0.0/8.")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        selectors = self.namespaceSelector is not None or self.podSelector is not None
        if selectors == (self.cidr is not None):
            raise fault("write either cidr or one of namespaceSelector and podSelector")
        return self


class EgressRule(Record):
    """Addresses that pods may reach besides the store and DNS."""

    cidr: Network = Field(description="A range of addresses, such as 169.254.170.23/32.")
    ports: tuple[PortNumber, ...] = Field(default=(443,), min_length=1, description="TCP ports there.")


class NetworkPolicyOptions(Record):
    """Who reaches the pods, and whom they reach."""

    peers: tuple[Peer, ...] | None = Field(
        default=None,
        alias="from",
        description="Who may send requests; left out, this namespace, and everybody where the model is published by an "
        "Ingress, a gateway, a LoadBalancer or a NodePort. The app's own pods always may.",
    )
    metrics: tuple[Peer, ...] | None = Field(
        default=None, description="Who may read metrics; left out, pods of every namespace."
    )
    apiServer: tuple[Network, ...] = Field(  # noqa: N815
        default=(),
        description="Addresses from which the API server reaches pods, for the preflight; left out, the pods of "
        "kube-system, where most clouds have its agents.",
    )
    store: tuple[Network, ...] = Field(
        default=(), description="Addresses of the store; left out, any address at the store's port."
    )
    egress: tuple[EgressRule, ...] = Field(default=(), description="What else the pods may reach.")


class DisruptionOptions(Record):
    """How many pods of a revision a node drain, or an upgrade of nodes, may take at once."""

    maxUnavailable: int = Field(  # noqa: N815
        default=1,
        ge=1,
        strict=True,
        description="At least one, or nodes with a pod could never be drained.",
    )


class WorkerOptions(Record):
    """A process of shipctl in the cluster."""

    image: Image = Field(description="An image with shipctl and its extra kubernetes; shipctl brings none.")
    resources: dict[Literal["cpu", "memory"], Quantity] = Field(
        default={"cpu": "50m", "memory": "192Mi"}, description="What it takes; memory is limited to that."
    )

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("resources"), dict):
            usual = cls.model_fields["resources"].default
            return {**given, "resources": {**usual, **given["resources"]}}
        return given


class ComparatorOptions(WorkerOptions):
    """The comparator, which holds requests and both answers to each until it has compared them."""

    resources: dict[Literal["cpu", "memory"], Quantity] = Field(
        default={"cpu": "50m", "memory": "512Mi"}, description="What it takes; memory is limited to that."
    )
