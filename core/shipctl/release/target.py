"""Where releases go: something that runs replicas of revisions behind a door, and remembers which one is stable.

A target does single, small acts and says what it sees; what is done when is decided by
:mod:`shipctl.release.rollout` alone, which does not know what kind of target it drives. Targets are found through
the entry-point group ``shipctl.targets``.

Who acts holds the target's lease. Each taking of the lease has a number, the *epoch*, which every act carries: an
owner that was suspended, and wakes up when somebody else has taken over, is refused. While no one renews the lease,
a watchdog on the target's side puts all traffic back on the stable revision (and takes the epoch with that).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from shipctl.errors import StageError
from shipctl.records import Record
from shipctl.release.surge import Surge
from shipctl.release.traffic import Traffic
from shipctl.stages.artifacts import Dataset, TritonRepository
from shipctl.stages.base import Serving
from shipctl.stages.context import CheckContext, ReleaseContext
from shipctl.stages.verdicts import Verdict

if TYPE_CHECKING:
    from shipctl.release.records import RecordStore
    from shipctl.release.strategy import Strategy

TARGET_GROUP = "shipctl.targets"
LEASE_SECONDS = 15.0
"""How long a lease holds that is not renewed; a takeover by the watchdog can take this long and its own look."""


class StaleEpochError(StageError):
    """Somebody else has taken the target over."""


class Capability(StrEnum):
    """What a target can do; a strategy says what it needs."""

    WEIGHTS = "weights"
    HEADERS = "headers"
    MIRROR = "mirror"
    PREVIEW = "preview"
    WATCHDOG = "watchdog"
    ACCESS_LOG = "access log"


class TargetOptions(Record):
    """Base of a target's options: what stands below ``target: {uses: …, with: …}``."""


@dataclass(frozen=True)
class Candidate:
    """What is to be released."""

    revision: str
    """Digest of what is released and how."""
    version: str
    """Semantic version of the release."""
    repository: TritonRepository
    """Its Triton repository, on disk."""
    golden: Dataset | None
    """Samples with the right answers, on disk; None where the release has none."""


class Replicas(Record):
    """The replicas of one revision, as the target sees them now."""

    version: str = Field(description="Semantic version of the release.")
    wanted: int = Field(ge=0, description="How many there should be.")
    ready: int = Field(ge=0, description="How many answer, and say that they serve this very revision.")
    problem: str | None = Field(default=None, description="Why some do not, in one line.")

    @property
    def whole(self) -> bool:
        """Whether all that should be there are ready."""
        return self.wanted > 0 and self.ready >= self.wanted


class Observation(Record):
    """What is the case on a target."""

    stable: str | None = Field(default=None, description="The committed revision; None before the first.")
    previous: str | None = Field(
        default=None, description="The one before it, while its replicas are still kept warm."
    )
    replicas: dict[str, Replicas] = Field(default_factory=dict, description="Per revision that has any.")
    traffic: Traffic = Field(default_factory=Traffic, description="The effective traffic.")
    asked: Traffic | None = Field(
        default=None,
        description="The distribution that the effective one is a rounding of, where replicas allow no other; None "
        "where the effective one is what was asked for, or is not yet.",
    )
    shifted: float | None = Field(
        default=None, description="When the effective traffic last changed, seconds since the epoch."
    )
    epoch: int = Field(default=0, ge=0, description="The lease's number.")
    rescued: bool = Field(
        default=False,
        description="Whether a watchdog has put the traffic where it is: nobody held the lease.",
    )

    def ready(self, revision: str | None) -> bool:
        """Whether a revision may get traffic: all its replicas are there, ready, and what they should be."""
        return revision is not None and revision in self.replicas and self.replicas[revision].whole


def in_words(traffic: Traffic, replicas: Mapping[str, Replicas]) -> str:
    """Say who gets how many of the requests, by versions; by digests, too, where two revisions have the same one."""
    versions = [replicas[revision].version for revision in traffic.weights if revision in replicas]
    shares = []
    for revision, weight in traffic.weights.items():
        name = replicas[revision].version if revision in replicas else revision[:12]
        name += f" ({revision[:12]})" if versions.count(name) > 1 else ""
        shares += [f"{weight} % to {name}"] if weight else []
    if not shares:
        return "the door is closed"
    copies = f", copies of {traffic.mirror.percent:g} % for a comparison" if traffic.mirror else ""
    return ", ".join(shares) + copies


class Prepare(Record):
    """Put the candidate on the target and start its replicas, without any traffic. Returns at once."""

    kind: Literal["prepare"] = "prepare"
    surge: Surge | None = Field(
        default=None,
        description="How many replicas to begin with; None for all that the revision is to have.",
    )


class Preflight(Record):
    """Load the candidate in a short-lived server of its own and ask it golden samples."""

    kind: Literal["preflight"] = "preflight"


class Shift(Record):
    """Distribute the traffic so."""

    kind: Literal["shift"] = "shift"
    traffic: Traffic
    surge: Surge | None = Field(
        default=None,
        description="Replace replicas by others within these bounds, and let the traffic follow: the act is asked for "
        "again until the traffic is what was asked for. None: nobody loses replicas.",
    )


class Commit(Record):
    """Make ``revision`` the stable one if ``expected`` is: the one compare-and-swap of a promotion."""

    kind: Literal["commit"] = "commit"
    expected: str | None
    revision: str | None


class ScaleDown(Record):
    """Stop the replicas of a revision that gets no traffic any more."""

    kind: Literal["scale-down"] = "scale-down"
    revision: str


Action = Annotated[Prepare | Preflight | Shift | Commit | ScaleDown, Field(discriminator="kind")]


class Applied(Record):
    """What an act came to."""

    message: str = Field(description="One line for a person.")
    verdicts: tuple[Verdict, ...] = Field(default=(), description="What a preflight found.")


class ReleaseTarget(ABC):
    """What every target has: it can be looked at, and stopped.

    See :class:`Target` for those that shipctl drives, and :class:`shipctl.release.delegated.DelegatedTarget` for those
    that have an engine of their own.
    """

    api_version: ClassVar[int] = 1
    options_model: ClassVar[type[TargetOptions]] = TargetOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset()

    def __init__(self, options: Any, ctx: ReleaseContext) -> None:
        self.options = options
        self.ctx = ctx

    @classmethod
    def offers(cls, options: Any) -> frozenset[Capability]:  # noqa: ARG003  (what has parts looks at it)
        """Return what it can do with these options: all of ``capabilities``, unless its parts differ in that."""
        return cls.capabilities

    @classmethod
    def refuses(cls, options: Any, traffic: Traffic) -> str | None:  # noqa: ARG003  (what has parts looks at them)
        """Say why requests cannot be distributed so with these options, and what to do instead; None if they can."""
        return None

    @classmethod  # noqa: B027  (not every one has anything to look at)
    def check(cls, options: Any, ctx: CheckContext) -> None:
        """Look, before anything has run, whether the target can be reached and has what it takes.

        :raises ShipctlError: :class:`UnavailableError` for what is missing, :class:`SpecError` for what the spec
            would have to say differently
        """

    def records(self) -> RecordStore | None:
        """Return where the records of this stage's releases are kept with the target, so that any machine goes on.

        None: on this machine, below `.shipctl/targets`.
        """
        return None

    def preview(self, candidate: str, strategy: Strategy | None = None) -> Sequence[str]:
        """Say, a line each, what a release of that revision with ``strategy`` would change here. Reads only."""
        return ()

    def diff(self, candidate: Candidate, strategy: Strategy | None = None) -> Sequence[str]:
        """Return the lines of a unified diff from what is live to what a release of ``candidate`` would make of it.

        Reads only; empty where there is nothing to compare.

        :raises StageError: if the target cannot be asked
        """
        return ()

    def manifests(self, candidate: Candidate, strategy: Strategy | None = None) -> dict[str, str]:
        """Return relative path to text of what a release of ``candidate`` puts on the target; nothing is asked.

        An engine of the target's own is told of the ``strategy`` in what is put there.
        """
        return {}

    def rights(self) -> dict[str, str]:
        """Return relative path to text of what gives who runs shipctl the rights that it needs; nothing is asked."""
        return {}

    @abstractmethod
    def endpoints(self) -> dict[str, str]:
        """Return protocol to address of the door, and of what metric providers read (``metrics/<replica>``, …)."""

    @abstractmethod
    def status(self) -> Sequence[Serving]:
        """Return what serves."""

    @abstractmethod
    def down(self) -> Sequence[str]:
        """Stop all of this pipeline here and say, a line each, what was stopped.

        :raises LockedError: if another process acts on it
        """

    def versions(self) -> dict[str, str]:
        """Return revision to the version number that its servers use for it, for metric providers."""
        return {}

    def metric_labels(self) -> dict[str, dict[str, str]]:
        """Return revision to the labels by which its series are told from another's, beside model and version."""
        return {}

    @property
    def logs(self) -> Path | None:
        """Where the door's logs lie, for providers on this machine; None where there are none."""
        return None

    def replay(self, candidate: Candidate, rate: float | None) -> None:  # noqa: B027  (not every target can)
        """Send golden samples through the door, ``rate`` requests per second, from now on; None stops that."""


class Target(ReleaseTarget):
    """One target as one release stage of one pipeline uses it. Every act looks first and does what is missing."""

    @abstractmethod
    def acquire(self, holder: str) -> int:
        """Take or renew the lease for :data:`LEASE_SECONDS` and return its epoch, the same while ``holder`` kept it.

        :raises LockedError: if another one holds it
        """

    @abstractmethod
    def release(self, epoch: int) -> None:
        """Give the lease back; one that is somebody else's by now is left alone."""

    @abstractmethod
    def observe(self, candidate: str | None = None) -> Observation:
        """Look. Reads only.

        :raises StageError: if the target cannot be asked
        """

    @abstractmethod
    def apply(self, action: Action, candidate: Candidate | None, epoch: int) -> Applied:
        """Do one thing; said again, it does what is missing of it. ``candidate`` is what is released.

        :raises StaleEpochError: if somebody else has taken over since ``epoch``
        :raises StageError: if it cannot be done
        """

    def shift_seconds(self) -> float:
        """Return how long a shift takes to be in effect at worst, for the arithmetic of the way back."""
        return 1.0
