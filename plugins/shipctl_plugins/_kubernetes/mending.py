"""What is to serve, and somebody has deleted: made again from what is remembered of it.

Only what is stable, or was just before, is brought back so: a candidate is started by a release alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from shipctl.errors import ShipctlError
from shipctl.release.target import StaleEpochError
from shipctl.release.traffic import Traffic
from shipctl_plugins._kubernetes import objects
from shipctl_plugins._kubernetes.api.connection import Ref
from shipctl_plugins._kubernetes.observe import Look, Observer
from shipctl_plugins._kubernetes.plans import Plans
from shipctl_plugins._kubernetes.state import Entry, ModelState

Object = dict[str, Any]


@dataclass(frozen=True)
class Mender:
    """Brings revisions of one app back."""

    observer: Observer
    plans: Plans
    log: Callable[[str], None]

    def mended(self, look: Look, traffic: Traffic, epoch: int, *, replaced: bool) -> Look:
        """Have everything be there that ``traffic`` reaches and that was released before; return a look after that.

        ``replaced``: replicas are replaced a few at a time, which starts them. What cannot be brought back is told, and
        keeps nobody from going on: traffic has to leave a candidate that was given up, whatever it finds.

        :raises StaleEpochError: if somebody else has taken over
        """
        gone = [entry for name in sorted(traffic.revisions) if (entry := kept(look.state, name)) is not None]
        changed = False
        for entry in gone:
            try:
                changed = self._bring_back(look, entry, epoch, replaced=replaced) or changed
            except StaleEpochError:
                raise
            except ShipctlError as exc:
                self.log(f"{entry.version} ({entry.revision[:12]}) cannot be brought back: {exc}")
        return self.observer.look() if changed else look

    def _bring_back(self, look: Look, entry: Entry, epoch: int, *, replaced: bool) -> bool:
        """Make what is missing of a revision; whether anything was."""
        place = self.observer.place
        name = place.app.of(entry.revision)
        servers = entry.revision in look.deployments
        if servers and place.cluster.get(Ref("v1", "Service", name)) is not None:
            return False
        count = look.group(entry.revision).asked if servers else 0 if replaced else entry.replicas
        options = self.plans.options.model_copy(update={"image": entry.image or self.plans.options.image})
        missing = [
            manifest
            for manifest in replace(self.plans, options=options).revision(entry, count)
            if not servers or manifest["kind"] == "Service"
        ]
        self.observer.lease.check(epoch)
        for manifest in missing:
            objects.apply(place, manifest, self.log)
        what = "Service" if servers else "Deployment"
        self.log(f"the {what} {name} was gone: {entry.version} is brought back as it is remembered")
        return True


def kept(state: ModelState, revision: str) -> Entry | None:
    """Return what is remembered of a revision that is to stay: it is stable, or was just before."""
    return state.entries.get(revision) if revision in {state.stable, state.previous} else None
