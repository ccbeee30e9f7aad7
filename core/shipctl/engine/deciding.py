"""What people do about releases that wait for them: look at what is asked, approve it, reject it.

Nothing is built or planned for that. The request lies in the store, and whoever has the spec (for its name and its
store) and the policy can answer it, on any machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from shipctl.engine.project import Project
from shipctl.errors import GateError
from shipctl.evidence.approval_rules import Standing, standing, who
from shipctl.evidence.approvals import ApprovalLog, Request, Statement, authors_of, chosen, pending
from shipctl.evidence.keys import SigningKey
from shipctl.evidence.policy import Approver, Policy, find_policy
from shipctl.spec import LoadedSpec, load_spec
from shipctl.store.depot import open_depot
from shipctl.store.local import LocalStore
from shipctl.store.log import Actor, audit
from shipctl.store.objects import ObjectStore, store_or_default

Decision = Literal["approve", "reject"]


class Pending(NamedTuple):
    """A release that waits for people, and how it stands with what is asked."""

    request: Request
    standing: dict[str, Standing]


class Decided(NamedTuple):
    """What somebody said."""

    request: Request
    statements: tuple[Statement, ...]
    signer: str | None
    """Id of the key that signed it, None for nobody's."""
    changed: bool
    """Whether it was said now; False if the same person had said the same before."""


@dataclass(frozen=True)
class _Desk:
    """Where the requests of one pipeline are looked at."""

    loaded: LoadedSpec
    project: Project
    objects: ObjectStore
    policy: Policy | None

    def requests(self, environment: str | None, stage: str | None) -> list[Request]:
        spec = self.loaded.spec
        stages = {item.id for item in spec.stages}
        return [
            item
            for item in pending(self.objects, spec.metadata.name)
            if item.plan.stage in stages
            and environment in {None, item.plan.environment}
            and stage in {None, item.plan.stage}
        ]

    def lasts(self, request: Request) -> float | None:
        """Return for how many seconds an approval holds, as the spec says today; None for as long as it says itself."""
        approval = next(
            (item.approval for item in self.loaded.spec.stages if item.id == request.plan.stage), None
        )
        return float(approval.expires) if approval is not None and approval.expires is not None else None

    def log(self, request: Request) -> ApprovalLog:
        return ApprovalLog(self.objects, request.plan.digest, heads=self.project.heads())


def waiting(
    spec: Path,
    *,
    environment: str | None = None,
    overrides: Sequence[str] = (),
    stage: str | None = None,
) -> list[Pending]:
    """Return what waits for people, oldest first.

    :raises SpecError: if the spec cannot be read, or the policy is wrong
    :raises StoreError: if the store cannot be read
    """
    with _opened(spec, environment, overrides) as desk:
        found = []
        for request in desk.requests(environment, stage):
            entries = desk.log(request).entries()
            lasts, now = desk.lasts(request), time.time()
            found.append(
                Pending(
                    request,
                    {
                        what: standing(
                            entries, request.plan, what, desk.policy, request.roles, lasts=lasts, now=now
                        )
                        for what in request.asks
                    },
                )
            )
        return found


def decide(
    spec: Path,
    decision: Decision,
    *,
    environment: str | None = None,
    overrides: Sequence[str] = (),
    stage: str | None = None,
    release: str | None = None,
    reason: str = "",
    role: str | None = None,
    key: SigningKey | None = None,
    expires: float | None = None,
) -> Decided:
    """Approve or reject what a release asks.

    ``release`` is the beginning of its digest, ``role`` the one in which it is said, ``key`` signs it, ``expires`` is
    how long an approval holds, in seconds.

    :raises SpecError: if no release waits, or several do
    :raises GateError: if who says it may not
    :raises StoreError: if it cannot be written down
    """
    with _opened(spec, environment, overrides) as desk:
        request = chosen(desk.requests(environment, stage), release, environment)
        log = desk.log(request)
        entries = log.entries()
        approver = _approver(desk.policy, key)
        role = _role(approver, role, request, desk.policy)
        if decision == "approve" and approver.may_be({*request.authors, *authors_of(entries)}):
            others = _others(desk.policy, approver, request)
            message = f"{approver.name} began this release, and nobody approves his own; ask {others}"
            raise GateError(message)
        now = time.time()
        statements = []
        for what in request.asks:
            stands = standing(entries, request.plan, what, desk.policy, request.roles, now=now)
            before = stands.approved if decision == "approve" else stands.rejected
            if before is None or before.approver != approver.name:
                statements.append(
                    Statement(
                        release=request.plan.digest,
                        what=what,
                        decision=decision,
                        approver=approver.name,
                        role=role,
                        reason=reason,
                        at=now,
                        expires=now + expires if expires is not None and decision == "approve" else None,
                    )
                )
        for statement in statements:
            _write_down(desk, request, statement)
            log.say(statement, request.plan, key)
        signer = key.public.id if key is not None else None
        return Decided(request, tuple(statements), signer, bool(statements))


def _write_down(desk: _Desk, request: Request, statement: Statement) -> None:
    """Append the entry of the audit log, before what it tells of counts."""
    plan = request.plan
    details = {
        "release": plan.digest,
        "what": statement.what,
        "approver": statement.approver,
        "role": statement.role,
        "reason": statement.reason,
        "stage": plan.stage,
        "target": plan.target,
        "environment": plan.environment,
        "revision": plan.revision,
    }
    log = audit(desk.objects, heads=desk.project.heads())
    log.append(statement.decision, f"{plan.pipeline}@{plan.version}", details)


@contextmanager
def _opened(spec: Path, environment: str | None, overrides: Sequence[str]) -> Iterator[_Desk]:
    loaded = load_spec(spec, environment=environment, overrides=overrides)
    project = Project.of(loaded.path)
    policy = find_policy(project.root)
    store = store_or_default(loaded.spec.store)
    with open_depot(store, loaded.root, LocalStore(project.store)) as depot:
        yield _Desk(loaded, project, depot.objects, policy)


def _approver(policy: Policy | None, key: SigningKey | None) -> Approver:
    """Return who speaks.

    :raises GateError: if it is nobody whom the policy names
    """
    found = who(policy, Actor.current(), key.public.id if key is not None else None)
    if isinstance(found, str):
        raise GateError(found)
    return found


def _role(approver: Approver, role: str | None, request: Request, policy: Policy | None) -> str:
    """Return the role in which somebody speaks.

    :raises GateError: if it is none that was asked, or none of his
    """
    if role is not None and role not in approver.roles:
        message = f"{approver.name} is no {role} in {_name(policy)}; the roles there are {', '.join(approver.roles)}"
        raise GateError(message)
    mine = [role] if role is not None else list(approver.roles)
    fitting = [item for item in mine if not request.roles or item in request.roles]
    if not fitting:
        who_else = _others(policy, approver, request)
        message = (
            f"{approver.name} is {', '.join(mine)}, and {' or '.join(request.roles)} is asked; ask {who_else}"
        )
        raise GateError(message)
    return fitting[0]


def _others(policy: Policy | None, approver: Approver, request: Request) -> str:
    others = policy.with_roles(request.roles) if policy is not None else []
    names = [item.name for item in others if item is not approver and not item.may_be(request.authors)]
    return " or ".join(names) or f"for another approver in {_name(policy)}"


def _name(policy: Policy | None) -> str:
    return policy.name if policy is not None else "the policy"
