"""How a cluster is reached: the options that every target in one has."""

from __future__ import annotations

from pydantic import Field

from shipctl.records import Record
from shipctl.spec.fields import Text
from shipctl.spec.units import Duration
from shipctl_plugins._kubernetes.manifests.fields import DnsLabel


class Access(Record):
    """Which cluster, and which namespace of it."""

    kubeconfig: Text | None = Field(
        default=None,
        description="A file; left out, $KUBECONFIG, ~/.kube/config, or the account of the pod that shipctl runs in.",
    )
    context: Text | None = Field(default=None, description="A context of it; left out, the current one.")
    namespace: DnsLabel | None = Field(
        default=None, description="Where everything is put; left out, the context's namespace, or default."
    )
    timeout: Duration = Field(
        default=Duration("30s"),
        description="How long the API server may take to answer in all, attempts after failures included.",
    )
