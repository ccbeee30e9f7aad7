"""Releases that wait for people: asked before anything moves, going on once somebody who may has said yes."""

from __future__ import annotations

import base64
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from shipctl import Phase, StoreError
from shipctl.engine import approvals, deciding, driving, operations
from shipctl.errors import GateError, SpecError
from shipctl.evidence.approvals import ApprovalLog, Statement
from shipctl.release.records import FileRecords
from shipctl.release.target import StaleEpochError
from shipctl.spec.models import StoreSpec
from shipctl.store.objects import open_store
from support_approvals import BOB, Become, actions, approve, audited, be, forged, gated, governed, rollback
from support_engine import EngineProject, Run

__all__ = ["be"]


@pytest.fixture(autouse=True)
def governed_project(project: EngineProject, be: Become) -> EngineProject:
    return governed(project)


def serving(project: EngineProject) -> str | None:
    found = project.serving()
    return found["version"] if found else None


def digest(run: Run) -> str:
    found = re.search(r"release ([0-9a-f]{12}) of demo", run.result.message)
    assert found is not None, run.result.message
    return found[1]


# -- before it begins ------------------------------------------------------------------------------------------------


def test_apply_waits_asks_and_goes_on_where_it_stood(project: EngineProject, be: Become) -> None:
    """The loop of a CI job: waiting, still waiting, approved, done."""
    gated(project)
    first = project.apply()
    assert (first.code, first.statuses, first.phases) == (6, {"a": "done", "d": "waiting"}, [])
    name = digest(first)
    assert first.messages["d"] == (
        f"waits for an approval by owner, for release {name} of demo 1.0.0 on shelf: `shipctl approve spec.yaml "
        f"--release {name}`, then run the same command again"
    )
    assert project.apply().code == 6
    assert serving(project) is None
    be("carol")
    done = approve(project, release=name, reason="tried it")
    assert done.changed
    assert not approve(project).changed, "nothing is said twice"
    be("ada")
    last = project.apply()
    assert (last.code, last.ran, serving(project)) == (0, [], "1.0.0")
    assert project.apply().statuses["d"] == "in-place"
    assert actions(project) == ["approval requested", "approve", "apply begun", "apply done"]
    said = audited(project)[1]
    assert said.actor.user == "carol"
    assert said.subject == "demo@1.0.0"
    assert {
        "approver": "carol",
        "role": "owner",
        "reason": "tried it",
        "what": "release",
    }.items() <= said.details.items()
    assert said.details["release"].startswith(name)


def test_a_plan_says_that_somebody_has_to_approve(project: EngineProject) -> None:
    gated(project)
    assert project.plan().nodes[-1].changes == (
        "nothing -> 1.0.0", "needs an approval by owner before anything moves",
    )  # fmt: skip
    name = digest(project.apply())
    assert project.plan().nodes[-1].changes[1] == (
        f"needs an approval of release {name} by owner before anything moves"
    )


def test_what_was_approved_is_used_once(project: EngineProject, be: Become) -> None:
    gated(project, approval="").apply()
    assert gated(project, "2.0.0", options="fail_at: promoting").apply().code == 6
    be("carol")
    approve(project)
    be("ada")
    assert project.apply().code == 7
    assert deciding.waiting(project.path) == []
    assert project.apply().code == 7, "nobody is asked about what is refused anyway"
    again = project.apply(retry=True)
    assert (again.code, again.statuses["d"], serving(project)) == (6, "waiting", "1.0.0")


def test_a_release_that_touched_nothing_needs_no_second_approval(project: EngineProject, be: Become) -> None:
    gated(project, options="fail_at: preparing").apply()
    be("carol")
    approve(project)
    be("ada")
    assert project.apply().code == 1
    assert project.apply().code == 1, "it fails again, and is not asked about again"


def test_a_release_that_a_person_aborted_is_approved_anew(project: EngineProject, be: Become) -> None:
    gated(project, options="ask_at: preparing").apply()
    be("carol")
    approve(project)
    be("ada")
    assert project.apply().phases == ["paused"]
    assert project.command("abort")[0] == 0
    assert operations.history(project.path)[0].record.phase is Phase.REJECTED
    again = project.apply()
    assert (again.code, again.phases) == (6, [])


def test_once_something_else_serves_it_is_approved_anew(project: EngineProject, be: Become) -> None:
    gated(project, "1.0.0", approval="").apply()
    waiting = digest(gated(project, "3.0.0").apply())
    be("carol")
    approve(project)
    be("ada")
    gated(project, "2.0.0", approval="").apply()
    again = gated(project, "3.0.0").apply()
    assert (again.code, serving(project)) == (6, "2.0.0")
    assert digest(again) != waiting


def test_another_version_of_the_same_thing_is_another_release(project: EngineProject, be: Become) -> None:
    first = digest(gated(project).apply())
    be("carol")
    approve(project)
    be("ada")
    project.edit("version: 1.0.0", "version: 1.0.1")
    again = project.apply()
    assert again.code == 6
    assert digest(again) != first


def test_what_serves_on_record_comes_back_without_being_asked_about(project: EngineProject) -> None:
    gated(project, approval="").apply()
    gated(project)
    operations.down(project.path, say=print)
    assert (project.apply().code, serving(project)) == (0, "1.0.0")


def test_rollback_and_down_need_no_approval(project: EngineProject) -> None:
    gated(project, "1.0.0", approval="").apply()
    gated(project, "2.0.0", approval="").apply()
    gated(project, "2.0.0")
    assert (rollback(project).code, serving(project)) == (0, "1.0.0")
    assert operations.down(project.path, say=print) == ["stopped 1.0.0"]


def test_a_superseding_release_that_waits_leaves_what_is_under_way_alone(project: EngineProject) -> None:
    gated(project, "1.0.0", approval="").apply()
    gated(project, "2.0.0", options="fail_at: promoting, fail_how: pause", approval="").apply()
    run = gated(project, "3.0.0").apply()
    assert (run.code, run.phases) == (6, [])
    assert operations.history(project.path)[0].record.phase is Phase.PAUSED


# -- who may ---------------------------------------------------------------------------------------------------------


def test_nobody_approves_his_own(project: EngineProject, be: Become) -> None:
    gated(project).apply()
    with pytest.raises(
        GateError, match="ada began this release, and nobody approves his own; ask bob or carol"
    ):
        approve(project)
    be("runner", ci="ada-ci")
    with pytest.raises(GateError, match="ada began this release, and nobody approves his own"):
        approve(project)


def test_an_own_approval_that_was_slipped_into_the_store_does_not_count(project: EngineProject) -> None:
    gated(project).apply()
    slip(project, "ada")
    run = project.apply()
    assert (run.code, serving(project)) == (6, None)
    assert "what was said does not count: entry 2: ada began this release, and nobody approves his own" in (
        run.result.message
    )


def slip(project: EngineProject, approver: str, **changes: Any) -> None:
    """Write an approval past the command, as somebody does who may write to the store."""
    (found,) = deciding.waiting(project.path)
    plan = found.request.plan
    fields: dict[str, Any] = {
        "release": plan.digest, "what": "release", "decision": "approve", "approver": approver, "role": "owner",
        "at": time.time(),
    }  # fmt: skip
    objects = open_store(StoreSpec(uri=str(project.state / "store")), project.root)
    ApprovalLog(objects, plan.digest).say(Statement(**{**fields, **changes}), plan, None)


def test_the_wrong_role_is_refused(project: EngineProject, be: Become) -> None:
    gated(project).apply()
    be("olga")
    with pytest.raises(GateError, match="olga is operator, and owner is asked; ask bob or carol"):
        approve(project)
    be("carol")
    with pytest.raises(GateError, match="carol is operator, and owner is asked"):
        approve(project, role="operator")
    with pytest.raises(GateError, match=r"carol is no king in .*; the roles there are owner, operator"):
        approve(project, role="king")
    be("olga")
    slip(project, "olga", role="operator")
    be("ada")
    run = project.apply()
    assert run.code == 6
    assert "olga approves as operator, and owner is asked" in run.result.message


def test_a_stranger_is_refused(project: EngineProject, be: Become) -> None:
    gated(project).apply()
    be("eve")
    with pytest.raises(GateError, match=r"eve@.* is no approver in .*, which names ada, bob, carol, olga"):
        approve(project)


def test_one_with_a_key_has_to_sign(project: EngineProject, be: Become) -> None:
    gated(project).apply()
    be("bob")
    with pytest.raises(GateError, match=r"bob has a key in .*: give it with `--key FILE`"):
        approve(project)
    slip(project, "bob")
    be("ada")
    assert "bob has a key, and it is not signed" in project.apply().result.message
    assert approve(project, key=BOB).signer == BOB.public.id
    assert project.apply().code == 0


@pytest.mark.parametrize("what", ["signature", "statement", "whose"])
def test_what_was_altered_in_the_store_lets_nothing_through(
    project: EngineProject, be: Become, what: str
) -> None:
    gated(project).apply()
    approve(project, "reject" if what == "statement" else "approve", key=BOB)

    def change(body: dict[str, Any]) -> None:
        envelope = body["details"]["envelope"]
        if what == "signature":
            envelope["signatures"][0]["sig"] = base64.b64encode(bytes(64)).decode()
            return
        statement = json.loads(base64.b64decode(envelope["payload"]))
        statement |= {"decision": "approve"} if what == "statement" else {"approver": "carol"}
        text = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
        envelope["payload"] = base64.b64encode(text).decode()
        body["action"] = "approve"

    forged(project, change)
    (project.state / "heads.json").unlink()  # which would have told as well
    run = project.apply()
    assert (run.code, serving(project)) == (6, None)
    said = "wrote it in the name of carol" if what == "whose" else "it was forged, or altered"
    assert said in run.result.message


def test_a_log_that_was_changed_since_it_was_seen_stops_the_release(
    project: EngineProject, be: Become
) -> None:
    gated(project).apply()
    approve(project, "reject", key=BOB)
    for path in sorted((project.state / "store" / "approvals").rglob("*.json"))[1:]:
        path.unlink()
    run = project.apply()
    assert run.code == 1
    assert "entries were taken away at its end" in run.result.message


def test_without_a_policy_nobody_can_approve(project: EngineProject) -> None:
    (project.root / "shipctl-policy.yaml").unlink()
    run = gated(project).apply()
    assert run.code == 6
    assert run.messages["d"] == (
        "waits for an approval by owner, and there is no policy that says who may approve; name `approvers` in "
        "shipctl-policy.yaml"
    )
    with pytest.raises(SpecError, match="no release waits"):
        approve(project)


def test_a_policy_without_the_role_says_what_it_lacks(project: EngineProject) -> None:
    run = gated(project, approval="{roles: [king, queen]}").apply()
    assert run.code == 6
    assert run.messages["d"].startswith("waits for an approval by king or queen, and no approver in ")
    assert run.messages["d"].endswith("is king or queen; the roles there are operator, owner")


def test_an_approver_who_is_taken_out_of_the_policy_has_approved_nothing(
    project: EngineProject, be: Become
) -> None:
    gated(project).apply()
    be("carol")
    approve(project)
    be("ada")
    path = project.root / "shipctl-policy.yaml"
    path.write_text(path.read_text().replace("name: carol", "name: charlotte"))
    assert project.apply().code == 6


def test_any_role_may_where_none_is_named(project: EngineProject, be: Become) -> None:
    run = gated(project, approval="{required: true}").apply()
    assert run.messages["d"].startswith(
        "waits for an approval by anybody whom the policy names, for release "
    )
    be("olga")
    approve(project)
    be("ada")
    assert project.apply().code == 0


# -- no, and too late ------------------------------------------------------------------------------------------------


def test_a_rejection_ends_with_4_and_says_who_and_why(project: EngineProject, be: Become) -> None:
    gated(project).apply()
    approve(project, "reject", key=BOB, reason="not on a Friday")
    be("carol")
    approve(project)
    be("ada")
    run = project.apply()
    assert (run.code, run.statuses["d"], serving(project)) == (4, "rejected", None)
    assert re.fullmatch(
        r"release [0-9a-f]{12} of demo 1\.0\.0 on shelf was rejected by bob \(owner\): not on a Friday",
        run.messages["d"],
    )
    approve(project, key=BOB)
    assert project.apply().code == 0, "the one who said no has said yes"


@pytest.mark.parametrize("by", ["spec", "approver"])
def test_an_expired_approval_ends_with_5_and_says_when(project: EngineProject, be: Become, by: str) -> None:
    gated(project, approval=f"{{roles: [owner]{', expires: 1s' if by == 'spec' else ''}}}").apply()
    be("carol")
    approve(project, expires=1.0 if by == "approver" else None)
    be("ada")
    time.sleep(1.1)
    [listed] = deciding.waiting(project.path)
    said = listed.standing["release"]
    assert (said.approved, said.expired is not None) == (None, True), "as `approve --list` shows it"
    run = project.apply()
    assert (run.code, run.statuses["d"], serving(project)) == (5, "waiting", None)
    assert re.search(
        r"was approved by carol \(owner\), which has expired on \d{4}-\d\d-\d\d \d\d:\d\d:\d\d; it waits for an "
        r"approval by owner: `shipctl approve spec\.yaml --release",
        run.messages["d"],
    )
    if by == "approver":
        be("carol")
        approve(project)
        be("ada")
        assert project.apply().code == 0


# -- in a pause ------------------------------------------------------------------------------------------------------


def test_a_pause_asks_for_what_it_needs(project: EngineProject, be: Become) -> None:
    gated(project, approval="", options="ask_at: promoting, asks: 'step 2, promote'")
    run = project.apply()
    assert (run.code, run.phases[-1]) == (6, "paused")
    assert (
        "waits for an approval of step 2, promote by anybody whom the policy names, for release"
        in (run.messages["d"])
    )
    be("carol")
    assert [item.what for item in approve(project).statements] == ["step 2", "promote"]
    be("ada")
    again = project.apply()
    assert (again.code, again.phases, serving(project)) == (0, ["promoting", "done"], "1.0.0")


def test_the_approval_of_a_release_is_none_of_its_promotion(project: EngineProject, be: Become) -> None:
    gated(project, options="ask_at: promoting").apply()
    be("carol")
    approve(project)
    be("ada")
    assert project.apply().code == 6
    assert serving(project) is None
    assert project.apply().code == 6
    be("carol")
    assert [item.what for item in approve(project).statements] == ["promote"]
    be("ada")
    assert project.apply().code == 0


def test_who_went_on_with_a_release_does_not_promote_it(project: EngineProject, be: Become) -> None:
    gated(project, options="ask_at: promoting").apply()
    be("carol")
    approve(project)
    assert project.apply().code == 6
    with pytest.raises(GateError, match="carol began this release"):
        approve(project)


def test_a_rejected_promotion_takes_the_candidate_back(project: EngineProject, be: Become) -> None:
    gated(project, approval="").apply()
    gated(project, "2.0.0", approval="", options="ask_at: promoting").apply()
    approve(project, "reject", key=BOB, reason="too slow")
    run = project.apply()
    assert (run.code, run.phases, serving(project)) == (4, ["aborting", "rolled-back"], "1.0.0")
    assert run.messages["d"] == "aborted: rejected by bob (owner): too slow; 1.0.0 serves"


def test_an_approval_in_a_pause_expires_too(project: EngineProject, be: Become) -> None:
    gated(project, approval="{required: false, expires: 1s}", options="ask_at: promoting").apply()
    be("carol")
    approve(project)
    be("ada")
    time.sleep(1.1)
    run = project.apply()
    assert run.code == 5
    assert "has expired on" in run.messages["d"]


def test_an_approval_that_comes_while_a_release_goes_on_is_heard(
    project: EngineProject, be: Become, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what comes in the moment of the pause: the run goes on at once."""
    monkeypatch.setattr(approvals, "POLL", 0.0)
    gated(project, approval="", options="ask_at: promoting").apply()
    stepping = driving.Driver._goes_on

    def approved_meanwhile(self: driving.Driver, *arguments: Any) -> bool:
        be("carol")
        approve(project)
        be("ada")
        return stepping(self, *arguments)

    monkeypatch.setattr(driving.Driver, "_goes_on", approved_meanwhile)
    run = project.apply()
    assert (run.code, run.phases) == (0, ["paused", "promoting", "done"])


# -- several runners -------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, be: Become) -> str:
    monkeypatch.setenv("SHIPCTL_STORE", str(tmp_path / "shared"))
    return str(tmp_path / "shared")


def test_one_runner_asks_somebody_approves_elsewhere_and_another_goes_on(
    project: EngineProject, tmp_path: Path, shared: str, be: Become
) -> None:
    first = gated(project).apply()
    assert first.code == 6
    desk = governed(EngineProject(tmp_path / "desk"))
    desk.path.write_text(project.path.read_text())
    be("carol")
    assert approve(desk).changed
    assert not (desk.state / "targets").exists(), "nothing was built or planned there"
    be("ada")
    second = gated(governed(EngineProject(tmp_path / "second")))
    run = second.apply()
    assert (run.code, run.ran, serving(second)) == (0, [], "1.0.0")
    assert deciding.waiting(desk.path) == []
    assert "approve" in actions(project, shared)


def test_while_nobody_can_be_asked_nothing_begins(
    project: EngineProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SHIPCTL_STORE", str(tmp_path / "file" / "store"))
    run = gated(project).apply()
    assert (run.code, run.phases, serving(project)) == (1, [], None)


# -- who drives ------------------------------------------------------------------------------------------------------


def test_a_process_whose_release_was_taken_over_stops_at_once(
    project: EngineProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was suspended, another one went on, and now it wakes up."""
    from shipctl_test_stages.file_deploy import FileDeploy

    gated(project, approval="")
    step = FileDeploy.step

    def overtaken(self: FileDeploy, *arguments: Any) -> Any:
        state, done = step(self, *arguments)
        if done.phase is Phase.SHIFTING:
            records = FileRecords(project.state / "targets" / "shelf", "demo", "d")
            found, etag = records.load()
            assert found.latest is not None
            records.save(found.put(found.latest.model_copy(update={"run": "other"})), etag)
        return state, done

    monkeypatch.setattr(FileDeploy, "step", overtaken)
    run = project.apply()
    assert (run.code, run.phases, serving(project)) == (8, ["preparing", "preflight"], None)
    assert run.messages["d"].startswith(
        "another process has taken over what d releases on shelf while this one drove 1.0.0: it is preflight by run "
        "other now. This one stops here and touches nothing more"
    )


def test_a_process_whose_target_was_taken_over_takes_no_step_back_either(
    project: EngineProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shipctl_test_stages.file_deploy import FileDeploy

    gated(project, approval="")
    step = FileDeploy.step

    def overtaken(self: FileDeploy, *arguments: Any) -> Any:
        state, done = step(self, *arguments)
        if done.phase is Phase.SHIFTING:
            message = "the watchdog has the target"
            raise StaleEpochError(message)
        return state, done

    monkeypatch.setattr(FileDeploy, "step", overtaken)
    run = project.apply()
    assert (run.code, run.phases, run.messages["d"]) == (
        8,
        ["preparing", "preflight"],
        "the watchdog has the target",
    )


def test_a_release_goes_on_while_approvals_cannot_be_read(
    project: EngineProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: ApprovalLog) -> str:
        raise StoreError("the store is away")

    monkeypatch.setattr(ApprovalLog, "head", broken)
    run = gated(project, approval="", options="ask_at: promoting").apply()
    assert (run.code, run.phases[-1]) == (6, "paused")
    assert any(
        "so nothing more counts as approved: the store is away" in text for text in run.result.warnings
    )
