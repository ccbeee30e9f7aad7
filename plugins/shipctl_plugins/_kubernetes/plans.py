"""The manifests of one app as the spec has them now, sorted by when a release puts them there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shipctl.records import digest_of
from shipctl.release.target import Candidate
from shipctl.spec.models import StoreSpec
from shipctl_plugins._kubernetes.app import App
from shipctl_plugins._kubernetes.manifests import render
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions
from shipctl_plugins._kubernetes.manifests.server import Workload
from shipctl_plugins._kubernetes.objects import LATER
from shipctl_plugins._kubernetes.repository import base_uri, version_number
from shipctl_plugins._kubernetes.state import Entry

Object = dict[str, Any]


@dataclass(frozen=True)
class Plans:
    """Renders for one app with one set of options; nothing is asked of a cluster."""

    options: KubernetesOptions
    app: App
    base: Path
    """The folder that relative paths of the spec are relative to."""

    def entry(self, candidate: Candidate, store: StoreSpec | None, now: float) -> Entry:
        """Return what is remembered of a candidate, prepared at ``now`` (seconds since the epoch).

        :raises SpecError: if servers in a cluster cannot read the store
        """
        repository = candidate.repository
        entry = Entry(
            revision=candidate.revision,
            version=candidate.version,
            model=repository.model,
            digest=repository.digest,
            repository=f"{base_uri(self.options, store)}/{repository.digest}",
            image=self.options.image,
            number=version_number(repository),
            replicas=self.options.replicas,
            autoscaled=self.options.autoscaling is not None,
            since=now,
        )
        return entry.model_copy(update={"rendered": self.rendered(entry)})

    def rendered(self, entry: Entry) -> str:
        """Return the digest of a revision's manifests, whatever the number of its replicas."""
        return digest_of(self.revision(entry, None))

    def revision(self, entry: Entry, replicas: int | None) -> list[Object]:
        """Return what one revision has for itself, the Deployment first; without ``replicas`` their number is open."""
        workload = Workload(
            app=self.app,
            revision=entry.revision,
            version=entry.version,
            model=entry.model,
            repository=entry.repository,
            digest=entry.digest,
            number=entry.number,
        )
        return render.revision_objects(self.options, workload, replicas=replicas, base=self.base)

    def shared(self) -> list[Object]:
        """Return what all revisions share, without the Services of clients."""
        return render.shared_objects(self.options, self.app, base=self.base)

    def sooner(self) -> list[Object]:
        """Return what new pods need at once."""
        return [each for each in self.shared() if each["kind"] not in LATER]

    def later(self) -> list[Object]:
        """Return what stays the stable revision's until another one is."""
        return [each for each in self.shared() if each["kind"] in LATER]

    def preview(self, revision: str) -> Object:
        """Return the Service that reaches one revision whatever the weights are."""
        return render.preview_service(self.options, self.app, revision, base=self.base)

    def door(self, live: Object | None = None) -> Object:
        """Return the Service of clients, closed; or, where it is there, with what it selects now."""
        door = render.door(self.options, self.app, None, base=self.base)
        if live is not None:
            door["spec"]["selector"] = live.get("spec", {}).get("selector") or door["spec"]["selector"]
        return door
