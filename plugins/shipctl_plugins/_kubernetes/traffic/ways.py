"""Objects of a cluster that say where requests go, each changed with care.

Every change is made from the version that was read (`resourceVersion`) and carries the epoch of who made it, so that
one who was overtaken can change nothing any more, even between his last look at the lease and his write. What was
asked for stands beside it in an annotation, which names whole revisions where the objects have ten digits of each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import Field, ValidationError

from shipctl.errors import StageError
from shipctl.records import Record
from shipctl.release.router import Backend
from shipctl.release.target import StaleEpochError
from shipctl.release.traffic import Traffic
from shipctl_plugins._kubernetes.app import (
    ANNOTATION_EPOCH,
    ANNOTATION_SHIFTED,
    ANNOTATION_TRAFFIC,
    FIELD_MANAGER,
    Place,
)

if TYPE_CHECKING:
    from shipctl_plugins._kubernetes.api.connection import Ref

Json = dict[str, Any]
Backends = Mapping[str, tuple[Backend, ...]]

COMPARATOR = "comparator"
"""The key among the backends under which the receiver of copies may stand."""
SETTLE_S = 5.0
"""How long a change may take to be in effect, where controllers follow within a second."""
_SOON_S, _LATER_S = 0.05, 0.5


def pauses() -> Iterator[float]:
    """Yield how long to wait before each look, in seconds: short as controllers are quick, then longer and longer."""
    pause = _SOON_S
    while True:
        yield pause
        pause = min(2 * pause, _LATER_S)


class Asked(Record):
    """What a router was told."""

    traffic: Traffic
    backends: dict[str, tuple[Backend, ...]] = Field(default_factory=dict)
    scale: dict[str, int] = Field(
        default_factory=dict, description="Numbers of pods by which a ratio was made, per revision."
    )


class Pending(NamedTuple):
    """What keeps a change from being in effect."""

    reason: str
    seconds: float
    """How long that is waited for."""


class Way(ABC):
    """One object of the cluster that says where requests go."""

    own: ClassVar[bool] = True
    """Whether shipctl makes it."""

    def __init__(self, place: Place, ref: Ref) -> None:
        self.place = place
        self.ref = ref

    def __str__(self) -> str:
        return f"{self.ref.kind} {self.ref.name}"

    def find(self) -> Json | None:
        """Return the live object; None if it is not there."""
        return self.place.cluster.get(self.ref)

    def check(self) -> None:
        """Look whether it can be had; reads only.

        :raises ShipctlError: if not
        """
        own_or_absent(self, self.find())

    def try_out(self, asked: Asked) -> None:  # noqa: B027  (most say in `refuses` what they cannot do)
        """Look, without doing it, whether the cluster would have it say what is to be asked.

        :raises ShipctlError: if not
        """

    @abstractmethod
    def weights(self, found: Json) -> list[dict[str, int]]:
        """Return how the live object weighs Services (by name), once for each kind of requests that it routes."""

    @abstractmethod
    def routes(self, found: Json, asked: Asked) -> bool:
        """Whether the live object sends requests where it was asked to."""

    def follows(self, found: Json, asked: Asked) -> bool:
        """Whether the live object says all that it would be told now, also what the options say."""
        return self.routes(found, asked)

    @abstractmethod
    def mark(self, found: Json) -> Any:
        """Return the part of the live object that counts, as JSON; what controllers write is not in it."""

    @abstractmethod
    def write(self, found: Json | None, asked: Asked, notes: dict[str, str | None]) -> None:
        """Have the object say what is asked, and annotate it; made from ``found``.

        :raises ConflictError: if it is another one by now
        """

    def annotate(self, found: Json, notes: dict[str, str | None]) -> None:
        """Write annotations alone."""
        version = found["metadata"]["resourceVersion"]
        self.place.cluster.patch(self.ref, {"metadata": {"annotations": notes}}, resource_version=version)

    def pending(self, found: Json) -> Pending | None:
        """Say what keeps the live object from being in effect; None if nothing does, or nobody will ever say."""
        return None


def notes_of(found: Json | None) -> dict[str, str]:
    """Return the annotations of an object."""
    return dict((found or {}).get("metadata", {}).get("annotations") or {})


def epoch_of(found: Json | None) -> int:
    """Return the epoch under which an object was written; 0 if none was."""
    try:
        return int(notes_of(found).get(ANNOTATION_EPOCH, "0"))
    except ValueError:
        return 0


def asked_of(found: Json | None) -> Asked | None:
    """Return what was asked for when an object was written; None if it does not say."""
    try:
        return Asked.model_validate_json(notes_of(found)[ANNOTATION_TRAFFIC])
    except (KeyError, ValidationError):
        return None


def since_of(found: Json | None) -> float | None:
    """Return when traffic last changed; None if the object does not say."""
    try:
        return float(notes_of(found)[ANNOTATION_SHIFTED])
    except (KeyError, ValueError):
        return None


def dropped(live: Any, wanted: Any, path: str = "") -> str | None:
    """Return the path of the first thing of ``wanted`` that ``live`` lacks; None if it has everything.

    It may have more, as an API server adds defaults; nothing is as good as empty.
    """
    if not wanted and wanted is not False and wanted != 0:
        return None if not live else path
    if isinstance(wanted, Mapping):
        have = live if isinstance(live, Mapping) else {}
        if live is None:
            return path if any(dropped(None, item) is not None for item in wanted.values()) else None
        found = (dropped(have.get(key), item, f"{path}.{key}") for key, item in wanted.items())
    elif isinstance(wanted, list | tuple):
        if not isinstance(live, list) or len(live) != len(wanted):
            return path
        found = (
            dropped(one, item, f"{path}[{i}]") for i, (one, item) in enumerate(zip(live, wanted, strict=True))
        )
    else:
        return None if live == wanted else path
    return next((one for one in found if one is not None), None)


def fence(found: Json | None, name: str, epoch: int) -> None:
    """Refuse to write to what somebody wrote who has taken over since.

    :raises StaleEpochError: if somebody has
    """
    written = epoch_of(found)
    if written > epoch:
        message = (
            f"{name} was written by somebody who has taken over since (epoch {written}, this is {epoch}): nothing was "
            "done; look with `shipctl status` and apply again"
        )
        raise StaleEpochError(message)


def backend_of(place: Place, revision: str) -> Backend:
    """Return how a router reaches a revision: by its Service."""
    name = place.app.of(revision)
    host = f"{name}.{place.app.namespace}.svc"
    return Backend(name=name, http=f"{host}:{place.http_port}", grpc=f"{host}:{place.grpc_port}")


def own_or_absent(way: Way, found: Json | None) -> None:
    """Refuse to write into an object of somebody else's that happens to have our name.

    :raises StageError: if it is one
    """
    if found is None or not way.own:
        return
    labels = found["metadata"].get("labels") or {}
    if labels.get("app.kubernetes.io/managed-by") != FIELD_MANAGER:
        owner = labels.get("app.kubernetes.io/managed-by")
        whose = f"belongs to {owner}" if owner else "is not shipctl's"
        message = (
            f"{way} of namespace {way.place.app.namespace} {whose}, and nothing in it was changed; choose another "
            "`name` for the target, or remove it"
        )
        raise StageError(message)
