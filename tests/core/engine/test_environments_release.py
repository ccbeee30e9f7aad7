"""Releases to several environments: nothing in common but the target's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from shipctl import Phase
from shipctl.engine import operations
from shipctl.errors import SpecError
from shipctl.release.needs import local_needs
from shipctl.spec.models import StoreSpec
from shipctl.store.models import ModelRegistry
from shipctl.store.objects import open_store
from support_approvals import ENVIRONMENTS, Become, approve, audited, be, gated, governed, promote, rollback
from support_engine import EngineProject, Run

__all__ = ["be"]


def spec(project: EngineProject, version: str = "1.0.0", **options: str) -> EngineProject:
    return gated(project, version, **{"approval": "", "head": ENVIRONMENTS, **options})


def apply(project: EngineProject, environment: str | None = None, **options: bool) -> Run:
    return project.apply(project.plan(environment=environment), **options)


def serving(project: EngineProject, environment: str | None = None) -> str | None:
    found = project.serving("shelf" if environment is None else f"shelf@{environment}")
    return found["version"] if found else None


def test_environments_have_their_own_folders_records_and_way_back(project: EngineProject) -> None:
    spec(project, "1.0.0")
    assert apply(project, "staging").code == 0
    assert (serving(project, "staging"), serving(project, "production"), serving(project)) == (
        "1.0.0",
        None,
        None,
    )
    assert apply(project, "production").code == 0
    spec(project, "2.0.0")
    assert apply(project, "staging").code == 0
    assert (serving(project, "staging"), serving(project, "production")) == ("2.0.0", "1.0.0")
    assert rollback(project, environment="staging").code == 0
    assert serving(project, "staging") == "1.0.0"
    assert rollback(project, environment="production").code == 2, "it has nothing to go back to"
    rows = operations.history(project.path)
    assert [(row.environment, row.record.version, row.serves) for row in rows] == [
        ("staging", "1.0.0", True),
        ("staging", "2.0.0", False),
        ("production", "1.0.0", True),
        ("staging", "1.0.0", False),
    ]
    assert {row.environment for row in operations.history(project.path, environment="production")} == {
        "production"
    }
    (shown,) = operations.status(project.path, environment="production")
    assert (shown.target, shown.environment, shown.serving[0].version) == ("shelf", "production", "1.0.0")


def test_the_store_and_the_collector_know_what_each_environment_needs(project: EngineProject) -> None:
    spec(project, "1.0.0")
    apply(project, "production")
    spec(project, "2.0.0")
    apply(project, "staging")
    objects = open_store(StoreSpec(uri=str(project.state / "store")), project.root)
    found = ModelRegistry(objects).deployments()
    assert sorted(item.target for item in found) == ["shelf@production", "shelf@staging"]
    needed = local_needs(project.state / "targets")
    assert {project.blob_of(f"text {version}").name for version in ("1.0.0", "2.0.0")} <= needed
    operations.down(project.path, say=print, environment="staging")
    assert [item.target for item in ModelRegistry(objects).deployments()] == ["shelf@production"]


def test_a_release_to_one_environment_is_skipped_in_others(project: EngineProject) -> None:
    spec(project, more=", environment: production")
    for environment, where in ((None, "no environment was chosen"), ("staging", "this is staging")):
        reason = f"it releases to production only, and {where}; choose it with -e production"
        planned = project.plan(environment=environment).nodes[-1]
        assert (planned.action, planned.reasons) == ("skipped", (reason,))
        run = apply(project, environment)
        assert (run.code, run.statuses["d"], run.messages["d"]) == (0, "skipped", reason)
    assert apply(project, "production").code == 0
    assert serving(project, "production") == "1.0.0"
    with pytest.raises(
        SpecError, match=r"spec\.yaml releases nothing to staging; choose one with -e production"
    ):
        operations.status(project.path, environment="staging")
    with pytest.raises(
        SpecError, match=r"releases nothing without an environment; choose one with -e production"
    ):
        rollback(project)


def test_an_unknown_environment_is_told_with_what_may_be_meant(project: EngineProject) -> None:
    spec(project, more=", environment: prodution")
    with pytest.raises(SpecError, match=r"there is no environment 'prodution'; did you mean 'production'\?"):
        project.plan()


def test_an_approval_for_one_environment_is_none_for_another(project: EngineProject, be: Become) -> None:
    spec(governed(project), approval="{roles: [owner]}")
    assert apply(project, "staging").code == 6
    assert apply(project, "production").code == 6
    be("carol")
    with pytest.raises(SpecError, match="several releases wait; say which with `--release`"):
        approve(project)
    approve(project, environment="staging")
    be("ada")
    assert apply(project, "production").code == 6
    run = apply(project, "staging")
    assert (run.code, serving(project, "staging"), serving(project, "production")) == (0, "1.0.0", None)


# -- promotion -------------------------------------------------------------------------------------------------------


def released(project: EngineProject, environment: str = "staging") -> dict[str, list[str]]:
    """Return the digests of the files of what serves there."""
    row = next(row for row in operations.history(project.path, environment=environment) if row.serves)
    return {
        name: [entry["sha256"] for entry in items[0]["files"]] for name, items in row.record.inputs.items()
    }


def test_a_promotion_releases_the_same_artifacts_and_builds_nothing(project: EngineProject) -> None:
    spec(project, "1.0.0")
    apply(project, "staging")
    before = project.trace()
    spec(project, "2.0.0")  # the spec has moved on; what serves in staging has not
    done = promote(project)
    assert (done.result.exit_code, done.version, done.stage) == (0, "1.0.0", "d")
    assert not any(line.startswith("run ") for line in project.trace()[len(before) :])
    assert released(project, "production") == released(project)
    found = project.serving("shelf@production")
    assert found is not None
    assert (found["version"], found["text"]) == ("1.0.0", "text 1.0.0")
    entry = audited(project)[-1]
    assert (entry.action, entry.subject) == ("promoted", "demo@1.0.0")
    assert (entry.details["from"], entry.details["to"]) == ("staging", "production")
    assert entry.details["artifacts"] == list(done.artifacts)
    again = promote(project)
    assert (again.result.exit_code, again.result.statuses) == (0, {"d": "in-place"})


def test_a_promotion_takes_the_options_of_where_it_goes(project: EngineProject) -> None:
    head = "vars: {place: here}\nenvironments: {staging: {vars: {place: left}}, production: {vars: {place: right}}}"
    spec(project, head=head, options="target: '${{ vars.place }}'")
    apply(project, "staging")
    done = promote(project)
    assert done.result.exit_code == 0
    assert done.revision != done.source_revision
    assert (project.serving("left@staging") is not None, project.serving("right@production") is not None) == (
        True,
        True,
    )


def test_a_promotion_waits_for_the_approval_of_where_it_goes(project: EngineProject, be: Become) -> None:
    spec(governed(project), approval="{roles: [owner]}")
    assert apply(project, "staging").code == 6
    be("carol")
    approve(project, environment="staging")
    be("ada")
    assert apply(project, "staging").code == 0
    waiting = promote(project)
    assert waiting.result.exit_code == 6
    assert "for release" in waiting.result.message
    assert "`shipctl approve spec.yaml -e production --release" in waiting.result.message
    assert serving(project, "production") is None
    be("carol")
    approve(project, environment="production")
    be("ada")
    assert promote(project).result.exit_code == 0
    assert serving(project, "production") == "1.0.0"


def test_what_does_not_serve_well_is_not_promoted(project: EngineProject) -> None:
    spec(project, "1.0.0")
    refused = promote(project)
    assert (refused.result.exit_code, refused.version) == (4, None)
    assert refused.result.message == "nothing was released on shelf@staging; `shipctl apply -e staging` first"
    apply(project, "staging")
    folder = project.state / "targets" / "shelf@staging"
    (folder / "ill").touch()
    assert "does not serve on shelf@staging, whole and healthy" in promote(project).result.message
    (folder / "ill").unlink()
    (folder / "serving.json").rename(folder / "gone.json")
    assert promote(project).result.exit_code == 4
    (folder / "gone.json").rename(folder / "serving.json")
    spec(project, "2.0.0", options="fail_at: promoting, fail_how: pause")
    assert apply(project, "staging").code == 6
    assert promote(project).result.message == (
        "release 2 of 2.0.0 on shelf@staging stands at paused; promote when it is over"
    )
    assert serving(project, "production") is None


def test_a_promotion_needs_a_stage_in_both(project: EngineProject) -> None:
    spec(project, more=", environment: staging")
    with pytest.raises(
        SpecError,
        match=r"no release stage releases to both staging and production \(to staging: d; to production: none\)",
    ):
        promote(project)
    with pytest.raises(SpecError, match=r"stage 'x' does not release to both"):
        promote(project, stage="x")
    with pytest.raises(SpecError, match=r"-e test: there is no environment 'test'"):
        promote(project, "staging", "test")
    with pytest.raises(SpecError, match="staging cannot be promoted to itself"):
        promote(project, "staging", "staging")


def test_what_was_rolled_back_there_is_promoted_only_on_request(project: EngineProject) -> None:
    for version in ("1.0.0", "2.0.0"):
        spec(project, version)
        apply(project, "staging")
        assert promote(project).result.exit_code == 0
    assert rollback(project, environment="production").code == 0
    assert promote(project).result.exit_code == 7
    assert promote(project, retry=True).result.exit_code == 0
    assert serving(project, "production") == "2.0.0"


def test_a_damaged_artifact_is_not_promoted(project: EngineProject) -> None:
    spec(project, "1.0.0")
    apply(project, "staging")
    blob: Path = project.blob_of("text 1.0.0")
    blob.chmod(0o644)
    blob.write_text("text 6.6.6")
    done = promote(project)
    assert done.result.exit_code == 1
    assert "is damaged" in done.result.message
    assert serving(project, "production") is None
    assert operations.history(project.path, environment="production") == []
    assert operations.history(project.path)[0].record.phase is Phase.DONE
