"""What a release has to do with people: it asks them, hears what they say, and waits or goes on by that."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from shipctl.engine.walk import NodeEnd
from shipctl.errors import ShipctlError
from shipctl.evidence.approval_rules import Standing, all_names, asked_for, lacking, standing
from shipctl.evidence.approvals import RELEASE, SHORT, ApprovalLog, ReleasePlan, Request, forget, moment
from shipctl.evidence.policy import Policy, find_policy
from shipctl.stages.base import Phase
from shipctl.store.log import Actor, LogEntry

if TYPE_CHECKING:
    from shipctl.engine.audit import Auditor
    from shipctl.engine.graph import Node
    from shipctl.engine.pipeline import Pipeline
    from shipctl.release.records import ReleaseRecord
    from shipctl.store.depot import Depot
    from shipctl.store.objects import ObjectStore

POLL = 2.0
"""Seconds between two looks into the store at least."""


class _Heard(NamedTuple):
    """What the store held when it was last looked at."""

    head: str = ""
    entries: Sequence[LogEntry] = ()


class ReleaseApprovals:
    """What people say to one change of one target, while a process is about it. Close it when that is over."""

    def __init__(
        self,
        pipeline: Pipeline,
        node: Node,
        plan: ReleasePlan,
        auditor: Auditor,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan = plan
        self._pipeline = pipeline
        self._approval = node.spec.approval
        self._auditor = auditor
        self._clock = clock
        self._heard: _Heard | None = None
        self._looked = clock()
        self._look: Future[_Heard] | None = None
        self._open = ExitStack()
        self._depot: Depot | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="approvals")
        self._policies: list[Policy | None] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._open.close()

    # -- what it takes -------------------------------------------------------------------------------------

    @property
    def required(self) -> bool:
        """Whether somebody has to approve before it begins. What serves on record was let in before."""
        wanted = self._approval is not None and self._approval.required
        return wanted and self.plan.revision != self.plan.stable

    @property
    def _roles(self) -> tuple[str, ...]:
        return self._approval.roles if self._approval is not None else ()

    @property
    def _lasts(self) -> float | None:
        """How long an approval holds, in seconds."""
        expires = self._approval.expires if self._approval is not None else None
        return float(expires) if expires is not None else None

    @property
    def by(self) -> str:
        """Who may approve, in words."""
        return " or ".join(self._roles) or "anybody whom the policy names"

    def _policy(self) -> Policy | None:
        if not self._policies:
            self._policies.append(find_policy(self._pipeline.project.root))
        return self._policies[0]

    def _objects(self) -> ObjectStore:
        if self._depot is None:
            self._depot = self._open.enter_context(self._pipeline.depot())
        return self._depot.objects

    def _log(self) -> ApprovalLog:
        return ApprovalLog(self._objects(), self.plan.digest, heads=self._pipeline.project.heads())

    def _standing(self, entries: Sequence[LogEntry], what: str) -> Standing:
        now = time.time()
        return standing(entries, self.plan, what, self._policy(), self._roles, lasts=self._lasts, now=now)

    # -- before it begins, and in a pause ----------------------------------------------------------------------

    def gate(self, run: str, preview: Callable[[], Sequence[str]]) -> NodeEnd | None:
        """Return None if the release may begin, else why not, after asking for it.

        :raises StoreError: if nobody can be asked, because the store cannot be reached
        """
        if not self.required:
            return None
        return self.waiting((RELEASE,), run, None, preview)

    def waiting(
        self,
        asks: tuple[str, ...],
        run: str,
        record: ReleaseRecord | None,
        preview: Callable[[], Sequence[str]],
    ) -> NodeEnd | None:
        """Ask for what is not approved, and return how the run ends; None if all of it is approved by now.

        :raises StoreError: if the store cannot be reached
        """
        log = self._log()
        entries = log.entries()
        found = {what: self._standing(entries, what) for what in asks}
        said = next((item.rejected for item in found.values() if item.rejected is not None), None)
        if said is not None:
            return NodeEnd("rejected", f"{self._name} was {said}", exit_code=4)
        missing = tuple(what for what, item in found.items() if item.approved is None)
        if not missing:
            return None
        short = lacking(self._policy(), self._roles)
        asked = "" if missing == (RELEASE,) else f" of {', '.join(missing)}"
        head = f"waits for an approval{asked} by {self.by}"
        if short is not None:
            return NodeEnd("waiting", f"{head}, and {short}", exit_code=6)
        self._ask(log, missing, run, record, preview)
        command = f"`{self._command()}`, then run the same command again"
        expired = next((found[what].expired for what in missing if found[what].expired is not None), None)
        if expired is not None:
            ends = moment(expired.ends(self._lasts) or expired.at)
            message = f"{self._name} was {expired}, which has expired on {ends}; it {head}: {command}"
            return NodeEnd("waiting", message, exit_code=5)
        ignored = [text for what in missing for text in found[what].ignored]
        rest = f"; what was said does not count: {'; '.join(dict.fromkeys(ignored))}" if ignored else ""
        return NodeEnd("waiting", f"{head}, for {self._name}: {command}{rest}", exit_code=6)

    @property
    def _name(self) -> str:
        return f"release {self.plan.digest[:SHORT]} of {self.plan}"

    def _ask(
        self,
        log: ApprovalLog,
        asks: tuple[str, ...],
        run: str,
        record: ReleaseRecord | None,
        preview: Callable[[], Sequence[str]],
    ) -> None:
        actor = Actor.current()
        authors = all_names(actor) | ({record.user} if record is not None else set())
        request = Request(
            plan=self.plan,
            asks=asks,
            roles=self._roles,
            authors=tuple(sorted(authors)),
            by=actor,
            run=run,
            at=time.time(),
            preview=tuple(preview()),
        )
        if log.ask(request):
            details = {
                "release": self.plan.digest,
                "asks": list(asks),
                "roles": list(self._roles),
                **self._place(),
            }
            self._auditor.record("approval requested", f"{self.plan.pipeline}@{self.plan.version}", details)

    def _place(self) -> dict[str, Any]:
        plan = self.plan
        return {"stage": plan.stage, "target": plan.target, "environment": plan.environment}

    def _command(self) -> str:
        loaded = self._pipeline.loaded
        path = loaded.path.resolve()
        root = self._pipeline.project.root
        spec = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
        chosen = ["-e", loaded.environment] if loaded.environment else []
        return shlex.join(["shipctl", "approve", str(spec), *chosen, "--release", self.plan.digest[:SHORT]])

    # -- while it goes on --------------------------------------------------------------------------------------

    def approved(self) -> frozenset[str]:
        """Return what is approved. A store that cannot be reached approves nothing more."""
        entries = self._listen()
        return frozenset(
            what for what in set(asked_for(entries)) if self._standing(entries, what).approved is not None
        )

    def rejected(self) -> str | None:
        """Return who has rejected any part of it, and why; None if nobody has."""
        entries = self._listen()
        said = (self._standing(entries, what).rejected for what in sorted(set(asked_for(entries))))
        return next((str(item) for item in said if item is not None), None)

    def look(self) -> None:
        """Look anew at once, and wait for that; an earlier look that is still going on has seen less."""
        self._look = None
        self._take(self._thread.submit(self._hear, self._heard or _Heard()))

    def _listen(self) -> Sequence[LogEntry]:
        """Return what was said. Only the first look is waited for: a slow store must not hold up a step."""
        now = self._clock()
        if self._heard is None:
            self.look()
        elif self._look is not None:
            if self._look.done():
                self._take(self._look)
                self._look = None
        elif now - self._looked >= POLL:
            self._looked = now
            self._look = self._thread.submit(self._hear, self._heard)
        return self._heard.entries if self._heard is not None else ()

    def _hear(self, before: _Heard) -> _Heard:
        log = self._log()
        head = log.head()
        return before if head == before.head else _Heard(head, log.entries())

    def _take(self, look: Future[_Heard]) -> None:
        try:
            self._heard = look.result()
        except ShipctlError as exc:
            self._heard = self._heard or _Heard()
            problem = f"approvals cannot be read from the store, so nothing more counts as approved: {exc}"
            if problem not in self._auditor.problems:
                self._auditor.problems.append(problem)

    # -- when it is over ---------------------------------------------------------------------------------------

    def end(self, phase: Phase, *, used: bool) -> None:
        """Take away what was asked. Approvals are ``used`` up by a release that touched anything, or was aborted."""
        try:
            if used:
                log = self._log()
                if log.head():
                    log.end(self.plan, phase)
            forget(self._objects(), self.plan)
        except ShipctlError as exc:
            self._auditor.problems.append(f"the store does not know that this release is over: {exc}")
