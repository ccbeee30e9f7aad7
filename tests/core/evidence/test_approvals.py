"""What of the things said about a release counts."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import SpecError, StoreError
from shipctl.evidence.approval_rules import Standing, lacking, standing, who
from shipctl.evidence.approvals import ApprovalLog, ReleasePlan, Request, Statement, chosen, forget, pending
from shipctl.evidence.keys import PrivateKey
from shipctl.evidence.policy import Policy, load_policy
from shipctl.spec.models import StoreSpec
from shipctl.store.log import Actor, Heads, Log
from shipctl.store.objects import ObjectStore, open_store

NOW = time.time()
PLAN = ReleasePlan(
    pipeline="demo", version="2.0.0", stage="d", target="shelf", environment=None, revision="b" * 64, stable="a" * 64
)  # fmt: skip
BOB, ADA = PrivateKey.generate(), PrivateKey.generate()
POLICY = """\
apiVersion: shipctl.dev/v1
kind: Policy
approvers:
  - {name: ada, roles: [owner], keys: [ada.pub]}
  - {name: bob, roles: [owner, operator], keys: [bob.pub], users: [bobby]}
  - {name: carol, roles: [operator], users: [carol-ci]}
"""


@pytest.fixture
def objects(tmp_path: Path) -> ObjectStore:
    return open_store(StoreSpec(uri=str(tmp_path / "store")), tmp_path)


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    (tmp_path / "ada.pub").write_text(ADA.public.pem())
    (tmp_path / "bob.pub").write_text(BOB.public.pem())
    (tmp_path / "policy.yaml").write_text(POLICY)
    return load_policy(tmp_path / "policy.yaml")


@pytest.fixture
def log(objects: ObjectStore, be: Callable[..., None]) -> ApprovalLog:
    """A log in which somebody asks."""
    be("dora")
    made = ApprovalLog(objects, PLAN.digest)
    made.ask(request())
    return made


@pytest.fixture
def be(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Become somebody, by the name of the account and perhaps by that of the CI."""
    for name in ("GITHUB_ACTIONS", "GITHUB_ACTOR", "GITLAB_CI", "BUILD_URL"):
        monkeypatch.delenv(name, raising=False)

    def become(user: str, ci: str | None = None) -> None:
        monkeypatch.setenv("LOGNAME", user)
        if ci is not None:
            monkeypatch.setenv("GITHUB_ACTIONS", "true")
            monkeypatch.setenv("GITHUB_ACTOR", ci)

    return become


def request(*authors: str, **changes: Any) -> Request:
    fields: dict[str, Any] = {
        "plan": PLAN, "asks": ("release",), "roles": ("owner",), "authors": authors or ("dora",),
        "by": Actor.current(), "run": "r1", "at": NOW,
    }  # fmt: skip
    return Request(**{**fields, **changes})


def statement(approver: str = "bob", **changes: Any) -> Statement:
    fields: dict[str, Any] = {
        "release": PLAN.digest, "what": "release", "decision": "approve", "approver": approver, "role": "owner",
        "at": NOW,
    }  # fmt: skip
    return Statement(**{**fields, **changes})


def stands(log: ApprovalLog, policy: Policy | None, what: str = "release", **options: Any) -> Standing:
    settings: dict[str, Any] = {"now": NOW, "roles": ("owner",), **options}
    return standing(log.entries(), PLAN, what, policy, **settings)


def test_a_signed_approval_counts(log: ApprovalLog, policy: Policy) -> None:
    log.say(statement(reason="looks good"), PLAN, BOB)
    found = stands(log, policy)
    assert found.approved is not None
    assert str(found.approved) == "approved by bob (owner): looks good"
    assert (found.rejected, found.expired, found.ignored) == (None, None, ())
    assert stands(log, policy, "promote").approved is None


def altered(log: ApprovalLog) -> None:
    """Sign one thing and put another in its place."""
    log.say(statement(decision="reject"), PLAN, BOB)
    entry = log.entries()[-1]
    envelope = dict(entry.details["envelope"])
    body = json.loads(base64.b64decode(envelope["payload"])) | {"decision": "approve"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    envelope["payload"] = base64.b64encode(text).decode()
    Log(log._objects, f"approvals/{PLAN.digest}").append("approve", "demo@2.0.0", {"envelope": envelope})


def replayed(log: ApprovalLog) -> None:
    """Pass a signed rejection off as an approval, by the word of the entry alone."""
    other = ApprovalLog(log._objects, "f" * 64)
    other.say(statement(decision="reject"), PLAN, BOB)
    details = Log(log._objects, f"approvals/{'f' * 64}").entries()[-1].details
    Log(log._objects, f"approvals/{PLAN.digest}").append("approve", "demo@2.0.0", details)


WRONG: dict[str, tuple[Callable[[ApprovalLog], object], str]] = {
    "forged": (
        lambda log: log.say(statement(), PLAN, ADA), "its signature is none of bob's: it was forged, or altered",
    ),
    "unsigned": (lambda log: log.say(statement(), PLAN, None), "bob has a key, and it is not signed"),
    "altered": (altered, "its signature is none of bob's: it was forged, or altered"),
    "another decision": (replayed, "the entry says approve, and bob said reject"),
    "another release": (
        lambda log: log.say(statement(release="c" * 64), PLAN, BOB),
        "what bob said is about another release (cccccccccccc)",
    ),
    "another role": (
        lambda log: log.say(statement(role="operator"), PLAN, BOB), "bob approves as operator, and owner is asked",
    ),
    "no role of his": (lambda log: log.say(statement(role="king"), PLAN, BOB), "bob is no king in the policy"),
    "nobody": (lambda log: log.say(statement("mallory"), PLAN, BOB), "mallory is no approver in "),
    "somebody's name": (
        lambda log: log.say(statement("carol", role="operator"), PLAN, None), "wrote it in the name of carol",
    ),
    "to come": (lambda log: log.say(statement(at=NOW + 3600), PLAN, BOB), "which is yet to come"),
    "no statement": (
        lambda log: Log(log._objects, f"approvals/{PLAN.digest}").append("approve", "x", {"statement": {"what": 1}}),
        "it is no statement",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", WRONG)
def test_what_does_not_count_is_told_with_its_reason(log: ApprovalLog, policy: Policy, how: str) -> None:
    say, reason = WRONG[how]
    say(log)
    found = stands(log, policy)
    assert found.approved is None
    assert any(reason in line for line in found.ignored), found.ignored


def test_the_author_of_a_run_approves_nothing_of_it(objects: ObjectStore, policy: Policy) -> None:
    log = ApprovalLog(objects, PLAN.digest)
    log.ask(request("Bobby"))
    log.say(statement(), PLAN, BOB)
    assert "bob began this release, and nobody approves his own" in stands(log, policy).ignored[0]
    log.say(statement("ada"), PLAN, ADA)
    assert stands(log, policy).approved is not None


def test_who_approved_may_go_on_with_it_afterwards(log: ApprovalLog, policy: Policy) -> None:
    log.say(statement(), PLAN, BOB)
    log.ask(request("bob", asks=("promote",)))
    assert stands(log, policy).approved is not None
    log.say(statement(what="promote"), PLAN, BOB)
    assert stands(log, policy, "promote").approved is None


def test_what_nobody_asked_for_cannot_be_approved(objects: ObjectStore, policy: Policy) -> None:
    log = ApprovalLog(objects, PLAN.digest)
    log.say(statement(), PLAN, BOB)
    log.ask(request())
    assert "bob approved what nobody had asked for" in stands(log, policy).ignored[0]


def test_one_without_a_key_is_known_by_the_account(
    log: ApprovalLog, policy: Policy, be: Callable[..., None]
) -> None:
    be("carol")
    log.say(statement("carol", role="operator"), PLAN, None)
    assert stands(log, policy, roles=()).approved is not None
    assert stands(log, policy, roles=("owner",)).approved is None


def test_in_ci_the_name_that_the_ci_knows_counts_and_not_the_account(
    log: ApprovalLog, policy: Policy, be: Callable[..., None]
) -> None:
    be("carol", ci="stranger")
    log.say(statement("carol", role="operator"), PLAN, None)
    assert stands(log, policy, roles=()).approved is None
    be("runner", ci="carol-ci")
    log.say(statement("carol", role="operator"), PLAN, None)
    assert stands(log, policy, roles=()).approved is not None


@pytest.mark.parametrize(("own", "lasts"), [(60.0, None), (None, 60.0), (600.0, 60.0), (60.0, 600.0)])
def test_an_approval_ends_by_its_own_or_the_specs_time_whichever_is_first(
    log: ApprovalLog, policy: Policy, own: float | None, lasts: float | None
) -> None:
    log.say(statement(expires=None if own is None else NOW + own), PLAN, BOB)
    assert stands(log, policy, lasts=lasts, now=NOW + 59).approved is not None
    late = stands(log, policy, lasts=lasts, now=NOW + 60)
    assert (late.approved, late.expired) == (None, log_statement(log))
    log.say(statement("ada", at=NOW + 70), PLAN, ADA)
    assert stands(log, policy, lasts=lasts, now=NOW + 71).approved is not None


def log_statement(log: ApprovalLog) -> Statement:
    envelope = log.entries()[1].details["envelope"]
    return Statement.model_validate_json(base64.b64decode(envelope["payload"]))


def test_a_rejection_stands_until_the_same_person_approves(log: ApprovalLog, policy: Policy) -> None:
    log.say(statement(), PLAN, BOB)
    log.say(statement("ada", decision="reject", reason="too early"), PLAN, ADA)
    found = stands(log, policy)
    assert (found.approved, str(found.rejected)) == (None, "rejected by ada (owner): too early")
    log.say(statement(), PLAN, BOB)
    assert stands(log, policy).rejected is not None
    log.say(statement("ada"), PLAN, ADA)
    assert stands(log, policy).approved is not None


def test_a_rejection_by_who_may_not_reject_stands_for_nothing(log: ApprovalLog, policy: Policy) -> None:
    log.say(statement(), PLAN, BOB)
    log.say(statement("ada", decision="reject"), PLAN, BOB)
    log.say(statement("carol", decision="reject", role="operator"), PLAN, None)
    assert stands(log, policy).approved is not None


def test_what_was_said_before_the_last_release_was_over_is_used_up(log: ApprovalLog, policy: Policy) -> None:
    log.say(statement(), PLAN, BOB)
    log.end(PLAN, "done")
    assert stands(log, policy).approved is None
    assert log.ask(request()), "it is asked anew"
    log.say(statement(), PLAN, BOB)
    assert stands(log, policy).approved is not None


def test_without_a_policy_nothing_counts(log: ApprovalLog) -> None:
    log.say(statement(), PLAN, BOB)
    assert stands(log, None).approved is None


def test_the_digest_covers_what_serves_and_where_it_goes() -> None:
    others: list[dict[str, Any]] = [
        {"pipeline": "x"}, {"version": "2.0.1"}, {"stage": "e"}, {"target": "x"}, {"environment": "production"},
        {"revision": "c" * 64}, {"stable": None},
    ]  # fmt: skip
    digests = {PLAN.model_copy(update=change).digest for change in others}
    assert len(digests | {PLAN.digest}) == len(others) + 1


def test_the_same_request_is_written_once_and_found_until_it_is_over(objects: ObjectStore) -> None:
    log = ApprovalLog(objects, PLAN.digest)
    assert log.ask(request())
    assert not log.ask(request())
    assert len(log.entries()) == 1
    assert [item.plan for item in pending(objects, "demo")] == [PLAN]
    newer = PLAN.model_copy(update={"revision": "d" * 64})
    ApprovalLog(objects, newer.digest).ask(request(plan=newer))
    assert [item.plan for item in pending(objects, "demo")] == [newer], "one waits in each place"
    forget(objects, PLAN)
    assert pending(objects, "demo") == []


def test_a_request_that_cannot_be_read_is_told(objects: ObjectStore) -> None:
    objects.write("requests/demo/x.json", b"{}")
    with pytest.raises(
        StoreError, match=r"requests/demo/x\.json in .* is no request \(plan: field required\)"
    ):
        pending(objects, "demo")


def test_a_log_that_was_cut_is_told(objects: ObjectStore, log: ApprovalLog, tmp_path: Path) -> None:
    """Whoever takes a rejection away at the end is found where it was seen."""
    watched = ApprovalLog(objects, PLAN.digest, heads=Heads(tmp_path / "heads.json"))
    watched.say(statement(decision="reject"), PLAN, BOB)
    objects.delete([f"approvals/{PLAN.digest}/00000002.json"])
    with pytest.raises(StoreError, match="entries were taken away at its end"):
        watched.entries()


def test_the_one_that_is_meant_is_chosen_by_its_digest() -> None:
    other = request(plan=PLAN.model_copy(update={"environment": "production"}))
    both = [request(), other]
    assert chosen([other], None, None) is other
    assert chosen(both, other.plan.digest[:12], None) is other
    with pytest.raises(
        SpecError, match=r"several releases wait; say which with `--release`:\n  [0-9a-f]{12}  demo 2"
    ):
        chosen(both, None, None)
    with pytest.raises(
        SpecError, match=r"no release waits for an approval in test; `shipctl apply` asks for one"
    ):
        chosen([], None, "test")
    with pytest.raises(
        SpecError, match=r"no release 000000000000 waits for an approval; these do: [0-9a-f]{12} \(demo"
    ):
        chosen(both, "0" * 12, None)
    with pytest.raises(SpecError, match=r"'abc' is no digest of a release; give 12 digits"):
        chosen(both, "abc", None)


def test_who_somebody_is(policy: Policy) -> None:
    carol = Actor(user="carol", host="h")
    found = who(policy, carol, None)
    assert not isinstance(found, str)
    assert found.name == "carol"
    assert "signed: give it with `--key FILE`" in str(who(policy, Actor(user="bob", host="h"), None))
    assert "eve@h is no approver in" in str(who(policy, Actor(user="eve", host="h"), None))
    signing = who(policy, carol, BOB.public.id)
    assert not isinstance(signing, str)
    assert signing.name == "bob"
    assert "is nobody's in" in str(who(policy, carol, PrivateKey.generate().public.id))
    assert who(None, carol, None) == (
        "there is no policy that says who may approve; name `approvers` in shipctl-policy.yaml"
    )


def test_what_a_policy_lacks_is_told(policy: Policy) -> None:
    assert lacking(policy, ("owner",)) is None
    assert lacking(policy, ()) is None
    assert lacking(policy, ("king",)) == (
        f"no approver in {policy.name} is king; the roles there are operator, owner"
    )
