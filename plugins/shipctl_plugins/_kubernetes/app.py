"""What one pipeline is called in a namespace: names, labels and annotations of everything that belongs to it.

Labels: Kubernetes' recommended ones (kubernetes.io/docs/concepts/overview/working-with-objects/common-labels) and two
of our own. A revision's digest has 64 digits, one more than a label may have: labels have its first ten, the annotation
has all of it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shipctl_plugins._kubernetes.api.connection import Cluster

FIELD_MANAGER = "shipctl"
"""Who owns what is applied."""
LABEL_REVISION = "shipctl.dev/revision"
ANNOTATION_REVISION = "shipctl.dev/revision-digest"
ANNOTATION_REPOSITORY = "shipctl.dev/repository-digest"
"""Digest of the Triton repository that a pod serves, which is in its URI, too."""
ANNOTATION_MODEL = "shipctl.dev/model"
"""What the model of a revision is called in Triton."""
ANNOTATION_NUMBER = "shipctl.dev/model-version"
"""Triton's number of the version that a revision's repository has."""
ANNOTATION_AUTOSCALED = "shipctl.dev/autoscaled"
"""`true` on a Deployment whose number of pods an autoscaler changes."""
ANNOTATION_SHIFTED = "shipctl.dev/shifted"
"""When traffic last changed, seconds since the epoch."""
ANNOTATION_EPOCH = "shipctl.dev/epoch"
"""The lease's number under which an object was written."""
ANNOTATION_TRAFFIC = "shipctl.dev/traffic"
"""The distribution that was asked for, as JSON."""
ANNOTATION_MOVED_BY = "shipctl.dev/moved-by"
"""Who moved the traffic last, where it was nobody who releases: `watchdog`."""
SHORT = 10
"""Digits of a revision that names and labels have."""
LONGEST = 40
"""Characters of an app's name; `-<revision>` and suffixes such as `-comparator` fit behind it (63 in all)."""


def short(revision: str) -> str:
    """Return what names and labels have of a revision."""
    return revision[:SHORT]


def dns_label(text: str) -> str:
    """Return ``text`` as a DNS label (RFC 1123) of at most :data:`LONGEST` characters, with a hash of what is cut."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "model"
    if plain[0].isdigit():  # a Service's name (RFC 1035) begins with a letter
        plain = f"m-{plain}"
    if len(plain) <= LONGEST and plain == text:
        return plain
    if len(plain) <= LONGEST - 7 and plain.replace("-", "") == re.sub(r"[^a-z0-9]", "", text.lower()):
        return plain
    return f"{plain[: LONGEST - 7].rstrip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class App:
    """One pipeline's model in one namespace."""

    name: str
    """What its Service is called, and everything else after it: a DNS label."""
    namespace: str
    pipeline: str
    environment: str | None = None

    def of(self, revision: str) -> str:
        """Return the name of a revision's Deployment and of its Service."""
        return f"{self.name}-{short(revision)}"

    @property
    def preview(self) -> str:
        """The Service that reaches the candidate before it gets traffic."""
        return f"{self.name}-preview"

    @property
    def kept(self) -> str:
        """The ConfigMap and the Lease of its releases."""
        return f"{self.name}-release"

    @property
    def records(self) -> str:
        """The ConfigMap of the records of its releases, followed by the stage's id."""
        return f"{self.name}-records"

    @property
    def operator(self) -> str:
        """The Role of who runs shipctl, and what binds it: a cluster's administrator has them."""
        return f"{self.name}-operator"

    @property
    def labels(self) -> dict[str, str]:
        """What everything has that belongs to it; :meth:`selector` finds it all."""
        environment = {"shipctl.dev/environment": self.environment} if self.environment else {}
        return {
            "app.kubernetes.io/instance": self.name,
            "app.kubernetes.io/managed-by": FIELD_MANAGER,
            "app.kubernetes.io/part-of": dns_label(self.pipeline),
            **environment,
        }

    @property
    def selector(self) -> dict[str, str]:
        """What finds everything that belongs to it."""
        return {"app.kubernetes.io/instance": self.name, "app.kubernetes.io/managed-by": FIELD_MANAGER}

    @property
    def pods(self) -> dict[str, str]:
        """What finds the servers' pods of all revisions."""
        return {"app.kubernetes.io/instance": self.name, "app.kubernetes.io/component": "server"}

    def pods_of(self, revision: str) -> dict[str, str]:
        """Return what finds the servers' pods of one revision."""
        return {**self.pods, LABEL_REVISION: short(revision)}


@dataclass(frozen=True)
class Place:
    """An app and the cluster that it is in: what routers and the lease are given."""

    cluster: Cluster
    app: App
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002

    def labelled(self, kind: str, api_version: str, name: str, **rest: Any) -> dict[str, Any]:
        """Return the beginning of a manifest of this app's."""
        return {
            "apiVersion": api_version,
            "kind": kind,
            "metadata": {"name": name, "namespace": self.app.namespace, "labels": dict(self.app.labels)},
            **rest,
        }
