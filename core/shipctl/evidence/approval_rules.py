"""What of all that was said about a release counts: who says it, whether he may, and for how long it holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from shipctl.evidence.approvals import PAYLOAD_TYPE, SHORT, ReleasePlan, Statement, moment, request_of
from shipctl.evidence.dsse import Envelope, fault_of, strict_json
from shipctl.store.log import Actor, LogEntry

if TYPE_CHECKING:
    from shipctl.evidence.policy import Approver, Policy

AHEAD = 300.0
"""Seconds by which an approver's clock may be ahead of ours."""


@dataclass(frozen=True)
class Standing:
    """What people have said to one thing that was asked, as far as it counts."""

    approved: Statement | None = None
    """The approval that lets it go on."""
    rejected: Statement | None = None
    """A rejection, which stands until the one who said it approves."""
    expired: Statement | None = None
    """The newest approval that has ceased to hold, where no other counts."""
    ignored: tuple[str, ...] = field(default=())
    """What was said and does not count, with the reason."""


def standing(
    entries: Sequence[LogEntry],
    plan: ReleasePlan,
    what: str,
    policy: Policy | None,
    roles: Collection[str],
    *,
    lasts: float | None = None,
    now: float,
) -> Standing:
    """Return how it stands with ``what`` of a release, by the log's entries and the policy of today.

    :param roles: who may approve; none named means every role of the policy
    :param lasts: how many seconds an approval holds, None for as long as it says itself
    """
    newest: dict[str, Statement] = {}
    ignored: list[str] = []
    authors: set[str] = set()
    for entry in entries:
        request = request_of(entry)
        if request is not None:
            authors.update(request.authors)
        if entry.action not in {"approve", "reject"}:
            continue
        said = _said(entry, policy)
        if isinstance(said, Statement) and said.release == plan.digest and said.what != what:
            continue
        problem = said if isinstance(said, str) else _against(said, entry, plan, policy, roles, authors, now)
        if problem is not None:
            ignored.append(f"entry {entry.number}: {problem}")
        elif isinstance(said, Statement):
            newest[said.approver] = said
    rejected = [item for item in newest.values() if item.decision == "reject"]
    approvals = sorted((item for item in newest.values() if item.decision == "approve"), key=lambda s: s.at)
    valid = [item for item in approvals if (ends := item.ends(lasts)) is None or now < ends]
    return Standing(
        approved=valid[-1] if valid and not rejected else None,
        rejected=rejected[-1] if rejected else None,
        expired=approvals[-1] if approvals and not valid else None,
        ignored=tuple(ignored),
    )


def asked_for(entries: Sequence[LogEntry]) -> Iterator[str]:
    """Yield what anybody has spoken of, whether it counts or not."""
    for entry in entries:
        body = entry.details.get("statement") or _payload(entry.details.get("envelope"))
        what = body.get("what") if isinstance(body, dict) else None
        if isinstance(what, str):
            yield what


def who(policy: Policy | None, actor: Actor, key: str | None) -> Approver | str:
    """Return who of the policy an account is, or the one that a key (its id) belongs to; else why nobody."""
    if policy is None or not policy.approvers:
        return _nobody(policy)
    if key is not None:
        owner = next((item for item in policy.approvers if key in {own.id for own in item.keys}), None)
        return owner or f"key {key} is nobody's in {policy.name}; add it to the keys of an approver there"
    names = account_names(actor)
    mine = [item for item in policy.approvers if item.is_known_as(names)]
    if not mine:
        known = ", ".join(item.name for item in policy.approvers)
        return f"{actor} is no approver in {policy.name}, which names {known}"
    if mine[0].keys:
        return f"{mine[0].name} has a key in {policy.name}, so an approval has to be signed: give it with `--key FILE`"
    return mine[0]


def lacking(policy: Policy | None, roles: Collection[str]) -> str | None:
    """Return why nobody at all could approve in one of these roles, or None."""
    if policy is None or not policy.approvers:
        return _nobody(policy)
    if not policy.with_roles(roles):
        have = ", ".join(sorted({role for item in policy.approvers for role in item.roles}))
        return f"no approver in {policy.name} is {' or '.join(sorted(roles))}; the roles there are {have}"
    return None


def _nobody(policy: Policy | None) -> str:
    if policy is None:
        return "there is no policy that says who may approve; name `approvers` in shipctl-policy.yaml"
    return f"{policy.name} names nobody who may approve; add `approvers`"


def account_names(actor: Actor) -> frozenset[str]:
    """Return the names by which somebody is known: in CI, where an account is everybody's, the CI's alone."""
    name = _ci_name(actor)
    return frozenset({name} if name is not None else {actor.user})


def all_names(actor: Actor) -> frozenset[str]:
    """Return all names that somebody may go by, for who must not be the same."""
    name = _ci_name(actor)
    return frozenset({actor.user, name} if name is not None else {actor.user})


def _ci_name(actor: Actor) -> str | None:
    return actor.ci.partition("@")[0] if actor.ci is not None else None


def _against(
    said: Statement,
    entry: LogEntry,
    plan: ReleasePlan,
    policy: Policy | None,
    roles: Collection[str],
    authors: Collection[str],
    now: float,
) -> str | None:
    """Return why a statement does not count, or None. Who says it has been looked at before."""
    approver = policy.approver(said.approver) if policy is not None else None
    if approver is None:
        return f"{said.approver} is no approver"
    if said.release != plan.digest:
        return f"what {said.approver} said is about another release ({said.release[:SHORT]})"
    if said.decision != entry.action:
        return f"the entry says {entry.action}, and {said.approver} said {said.decision}"
    if said.role not in approver.roles:
        return f"{said.approver} is no {said.role} in the policy"
    if roles and said.role not in roles:
        return f"{said.approver} {said.decision}s as {said.role}, and {' or '.join(sorted(roles))} is asked"
    if said.at > now + AHEAD:
        return f"what {said.approver} said is dated {moment(said.at)}, which is yet to come"
    if said.decision == "approve":
        if not authors:
            return f"{said.approver} approved what nobody had asked for"
        if approver.may_be(authors):
            return f"{said.approver} began this release, and nobody approves his own"
    return None


def _said(entry: LogEntry, policy: Policy | None) -> Statement | str:
    """Return what an entry says, once it is sure who says it; else why it does not count."""
    envelope = entry.details.get("envelope")
    body = entry.details.get("statement") if envelope is None else _payload(envelope)
    try:
        said = Statement.model_validate(body)
    except ValidationError as exc:
        return f"it is no statement ({fault_of(exc)})"
    approver = policy.approver(said.approver) if policy is not None else None
    if approver is None:
        return f"{said.approver} is no approver in {policy.name if policy is not None else 'a policy'}"
    if not approver.keys:
        if approver.is_known_as(account_names(entry.actor)):
            return said
        return f"{entry.actor} wrote it in the name of {said.approver}"
    if envelope is None:
        return f"{said.approver} has a key, and it is not signed"
    signed = Envelope.model_validate(envelope)
    if signed.payload_type != PAYLOAD_TYPE or not any(signed.is_signed_by(key) for key in approver.keys):
        return f"its signature is none of {said.approver}'s: it was forged, or altered"
    return said


def _payload(envelope: Any) -> Any:
    """Return the content of an envelope, verified or not; None for what is none."""
    try:
        return strict_json(Envelope.model_validate(envelope).body())
    except (ValueError, RecursionError):
        return None
