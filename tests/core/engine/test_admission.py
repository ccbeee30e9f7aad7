"""What may be released: looked up in the registry, admitted by a policy, written down in the audit log."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from shipctl import SpecError
from shipctl.engine import operations
from shipctl.evidence.keys import PrivateKey
from shipctl.store.local import Result, read_result, result_body
from support_engine import EngineProject, Run
from support_publishing import audited, deploying, key, policy, publishing, registry, rollback
from support_signing import NOW, Issued, issue

__all__ = ["key"]

# -- what is registered as a source ------------------------------------------------------------------------------


def serving(project: EngineProject, version: str = "1.0.0", reference: str = "demo@staging") -> EngineProject:
    return project.spec(
        "- {id: publish, uses: publish, with: {alias: production}}",
        head=f"model: {{uri: 'registry:/{reference}'}}",
        version=version,
    )


def test_a_registered_package_can_be_released_from_another_project(
    project: EngineProject, key: PrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHIPCTL_STORE", str(tmp_path / "shared"))
    publishing(project).apply()
    other = serving(EngineProject(tmp_path / "other"))
    assert other.apply().code == 0
    assert registry(project, str(tmp_path / "shared")).resolve("demo@production").version == "1.0.0"


def test_a_reference_that_means_nothing_is_told_at_its_line(project: EngineProject, key: PrivateKey) -> None:
    publishing(project).apply()
    with pytest.raises(SpecError, match=r"spec\.yaml:4:14: demo has no .*stagging.*did you mean 'staging'"):
        serving(project, reference="demo@stagging").plan()


def test_the_spec_must_say_the_version_that_it_ships(project: EngineProject, key: PrivateKey) -> None:
    publishing(project).apply()
    with pytest.raises(SpecError, match=r"the model is demo@1\.0\.0, and this spec ships version 2\.0\.0"):
        serving(project, version="2.0.0").plan()


def test_a_damaged_package_is_not_released(
    project: EngineProject, key: PrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHIPCTL_STORE", str(tmp_path / "shared"))
    publishing(project).apply()
    blob = next(
        path
        for path in (tmp_path / "shared/blobs").rglob("*")
        if path.is_file() and path.read_bytes() == b"weights"
    )
    blob.chmod(0o644)
    blob.write_bytes(b"weighty")
    run = serving(EngineProject(tmp_path / "other")).apply()
    assert run.code == 1
    assert "damaged" in run.messages["publish"]


# -- the policy --------------------------------------------------------------------------------------------------


def test_a_policy_lets_a_signed_package_pass_and_the_record_says_whose(
    project: EngineProject, key: PrivateKey
) -> None:
    policy(project, "keys: [release.pub]")
    assert deploying(project).apply().code == 0
    record = operations.history(project.path)[0].record
    assert record.admission is not None
    assert (record.admission.reference, record.admission.signer) == ("demo@1.0.0", key.public.id)


def test_a_policy_refuses_an_unsigned_package(project: EngineProject, key: PrivateKey) -> None:
    policy(project, "keys: [release.pub]")
    run = publishing(project, sign=False).apply()
    assert (run.code, run.statuses["publish"]) == (4, "rejected")
    assert "demo@1.0.0 is not signed" in run.messages["publish"]
    assert registry(project).models() == []
    assert audited(project) == [("apply refused", "demo@1.0.0")]


def test_a_policy_refuses_a_release_that_takes_no_package(project: EngineProject, key: PrivateKey) -> None:
    policy(project, "keys: [release.pub]")
    project.spec("- {id: a, uses: make, with: {text: aa}}\n- {id: d, uses: file-deploy}")
    run = project.apply()
    assert run.code == 4
    assert "asks for a signed package, and this release takes none" in run.messages["d"]
    assert project.serving() is None


def test_a_policy_refuses_a_key_that_it_does_not_trust(
    project: EngineProject, key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy(project, "keys: [release.pub]")
    other = PrivateKey.generate()
    monkeypatch.setenv("SIGNING_KEY", other.pem().decode())
    run = deploying(project).apply()
    assert run.code == 4
    assert other.public.id in run.messages["deploy"]
    assert not (project.state / "targets/desk/serving").exists()


def test_a_policy_refuses_what_is_not_in_the_package(project: EngineProject, key: PrivateKey) -> None:
    policy(project, "keys: [release.pub]")
    deploying(project)
    project.edit(
        "- {id: deploy, uses: package-deploy, needs: [make, sign], inputs: {package: sign}}",
        "- {id: other, uses: make, needs: [], with: {text: slipped in}}\n"
        "  - {id: deploy, uses: package-deploy, needs: [other, sign], inputs: {package: sign, thing: other}}",
    )
    run = project.apply()
    assert run.code == 4
    assert "the thing is not in the signed package demo@1.0.0" in run.messages["deploy"]


def results(store: Path) -> dict[str, tuple[Path, Result]]:
    """Return the results of a store by their stage's plugin, the newest one of each."""
    found: dict[str, tuple[Path, Result]] = {}
    for path in sorted((store / "results").rglob("*"), key=lambda path: path.stat().st_mtime):
        result = read_result(path.read_bytes(), path.name) if path.is_file() else None
        if result is not None:
            found[result.uses] = (path, result)
    return found


def put_result(path: Path, result: Result) -> None:
    path.chmod(0o644)
    path.write_bytes(result_body(result))


def test_an_older_package_is_not_released_as_the_newer_one(
    project: EngineProject, key: PrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy(project, "keys: [release.pub]")
    shared = tmp_path / "shared"
    monkeypatch.setenv("SHIPCTL_STORE", str(shared))
    deploying(project, "1.0.0", "old").apply()
    old = results(shared)
    deploying(project, "1.1.0", "new").apply(project.plan(until="sign"))
    new = results(shared)
    for uses in (
        "make-package",
        "sign",
    ):  # who may write to the bucket puts the old package in the new one's place
        put_result(new[uses][0], old[uses][1].model_copy(update={"fingerprint": new[uses][1].fingerprint}))
    shutil.rmtree(project.state / "store")
    run = project.apply()
    assert run.code == 4
    assert "this is demo@1.0.0, correctly signed, and demo@1.1.0 was expected" in run.messages["deploy"]


@pytest.mark.parametrize(
    "path", ["../../../../../../shipctl-policy.yaml", "{root}/shipctl-policy.yaml", "a/../b", ""]
)
def test_a_shared_result_cannot_name_files_outside(
    project: EngineProject, key: PrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    policy(project, "keys: [release.pub]")
    before = (project.root / "shipctl-policy.yaml").read_text()
    shared = tmp_path / "shared"
    monkeypatch.setenv("SHIPCTL_STORE", str(shared))
    deploying(project).apply(project.plan(until="sign"))
    place, result = results(shared)["make-package"]
    body = json.loads(result.model_dump_json())
    body["outputs"]["thing"]["files"][0]["path"] = path.format(root=project.root)
    put_result(place, Result.model_validate(body))
    shutil.rmtree(project.state / "store")
    run = project.apply()
    assert (run.code, run.ran) == (0, ["make"])  # it is no result, so the stage runs
    assert (project.root / "shipctl-policy.yaml").read_text() == before


@pytest.mark.parametrize("change", ["kind", "fields", "files", "outputs", "uses", "fingerprint"])
def test_a_shared_result_that_lies_is_no_result(
    project: EngineProject, key: PrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    shared = tmp_path / "shared"
    monkeypatch.setenv("SHIPCTL_STORE", str(shared))
    deploying(project).apply(project.plan(until="make"))
    place, result = results(shared)["make-package"]
    body = json.loads(result.model_dump_json())
    thing = body["outputs"]["thing"]
    {
        "kind": lambda: thing.update(kind="other"),
        "fields": lambda: body["outputs"]["package"].pop("version"),
        "files": lambda: thing.update(files=7),
        "outputs": lambda: body.update(outputs={}),
        "uses": lambda: body.update(uses="make"),
        "fingerprint": lambda: body.update(fingerprint="0" * 64),
    }[change]()
    put_result(place, Result.model_validate(body))
    shutil.rmtree(project.state / "store")
    run = project.apply(project.plan(until="make"))
    assert (run.code, run.ran) == (0, ["make"])


def test_what_serves_and_would_not_be_let_begin_is_told(project: EngineProject, key: PrivateKey) -> None:
    deploying(project).apply()
    policy(project, "keys: [release.pub]")
    run = project.apply()
    assert (run.code, run.statuses["deploy"]) == (0, "in-place")
    assert "was released without the signature that" in run.result.warnings[0]


def test_what_serves_and_was_signed_by_a_key_that_is_trusted_no_more_is_told(
    project: EngineProject, key: PrivateKey
) -> None:
    policy(project, "keys: [release.pub]")
    deploying(project).apply()
    (project.root / "other.pub").write_text(PrivateKey.generate().public.pem())
    policy(project, "keys: [other.pub]")
    run = project.apply()
    assert (run.code, run.statuses["deploy"]) == (0, "in-place")
    place = project.root / "shipctl-policy.yaml"
    told = f"demo 1.0.0 on desk was signed by {key.public.id}, whom {place} does not trust any more"
    assert run.result.warnings == (told,)


@pytest.mark.parametrize("value", ["", " "])
def test_a_policy_variable_without_a_value_lets_nothing_begin(
    project: EngineProject, key: PrivateKey, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("SHIPCTL_POLICY", value)
    with pytest.raises(SpecError, match="SHIPCTL_POLICY is set and empty"):
        deploying(project).apply()


def test_a_policy_that_is_wrong_stops_the_release(project: EngineProject, key: PrivateKey) -> None:
    policy(project, "keys: [nowhere.pub]")
    with pytest.raises(SpecError, match=r"shipctl-policy\.yaml:6:10"):
        deploying(project).apply()


def expiring(project: EngineProject, monkeypatch: pytest.MonkeyPatch) -> Issued:
    """Sign with a certificate that is good for five seconds more."""
    root = issue("root", ca=True)
    leaf = issue("release", root, days=(-1, (time.time() - NOW.timestamp() + 5) / 86400))
    monkeypatch.setenv("SIGNING_KEY", leaf.signing_key().pem().decode())
    (project.root / "root.pem").write_text(root.pem)
    (project.root / "chain.pem").write_text(leaf.pem)
    policy(project, "certificates: [root.pem]")
    return leaf


@pytest.mark.slow
def test_an_expired_certificate_stops_a_release_and_never_a_rollback(
    project: EngineProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaf = expiring(project, monkeypatch)

    def deploy(version: str, text: str) -> Run:
        deploying(project, version, text)
        project.edit(
            "with: {key: '${{ secrets.key }}'}", "with: {key: '${{ secrets.key }}', certificates: chain.pem}"
        )
        return project.apply()

    run = deploy("1.0.0", "one")
    assert run.code == 0, run.messages
    assert deploy("1.1.0", "two").code == 0
    time.sleep(max(0.0, leaf.certificate.not_valid_after_utc.timestamp() - time.time()) + 1)
    operations.down(project.path, say=print)
    refused = project.apply()
    assert refused.code == 4
    assert "expired" in refused.messages["deploy"]
    back = rollback(project)
    assert back.code == 0
    assert operations.history(project.path)[0].record.version == "1.0.0"


def test_an_altered_package_is_never_gone_back_to(project: EngineProject, key: PrivateKey) -> None:
    policy(project, "keys: [release.pub]")
    deploying(project, "1.0.0", "first").apply()
    deploying(project, "1.1.0", "second").apply()
    blob = next(
        path
        for path in (project.state / "store/blobs").rglob("*")
        if path.is_file() and path.read_bytes() == b"first"
    )
    blob.chmod(0o644)
    blob.write_bytes(b"worst")
    run = rollback(project)
    assert run.code == 1
    assert "damaged" in run.result.message


# -- the audit log -------------------------------------------------------------------------------------------------


def test_the_audit_log_says_who_did_what(project: EngineProject, key: PrivateKey) -> None:
    deploying(project).apply()
    deploying(project, "1.1.0", "other").apply()
    rollback(project)
    operations.down(project.path, say=print)
    assert audited(project) == [
        ("apply begun", "demo@1.0.0"),
        ("apply done", "demo@1.0.0"),
        ("apply begun", "demo@1.1.0"),
        ("apply done", "demo@1.1.0"),
        ("rollback begun", "demo@1.0.0"),
        ("rollback done", "demo@1.0.0"),
        ("down", "demo@1.1.0"),
    ]


def test_nothing_is_released_while_nobody_can_write_down_that_it_was(
    project: EngineProject, key: PrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SHIPCTL_STORE", str(tmp_path / "file" / "store"))
    run = deploying(project).apply()
    assert run.code == 1
    assert not (project.state / "targets/desk/serving").exists()


def test_an_audit_log_that_was_cut_is_told_and_stays_so(project: EngineProject, key: PrivateKey) -> None:
    deploying(project).apply()
    deploying(project, "1.1.0", "other").apply()
    log = project.state / "store/audit"
    for entry in sorted(log.iterdir())[-2:]:
        entry.unlink()
    run = deploying(project, "1.2.0", "third").apply()
    assert run.code == 0
    assert any("entries were taken away at its end" in warning for warning in run.result.warnings)
    code, said = project.command("history", "spec.yaml", "--audit")
    assert code == 1
    assert "was seen here before: the log was rewritten" in said


def test_a_rollback_goes_on_without_the_store_and_says_so(
    project: EngineProject, key: PrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    monkeypatch.setenv("SHIPCTL_STORE", str(shared))
    deploying(project).apply()
    deploying(project, "1.1.0", "other").apply()
    shutil.rmtree(shared)
    shared.write_text("no folder any more")
    run = rollback(project)
    assert run.code == 0
    assert any("the audit log cannot be written" in warning for warning in run.result.warnings)
    assert ("rollback done", "demo@1.0.0") in audited(project)


def test_the_store_knows_what_a_target_needs(project: EngineProject, key: PrivateKey) -> None:
    deploying(project).apply()
    first = registry(project).deployments()
    deploying(project, "1.1.0", "other").apply()
    second = registry(project).deployments()
    assert [item.target for item in second] == ["desk"]
    assert set(first[0].serving) < set(second[0].manifests)
    assert not set(first[0].serving) & set(second[0].serving)
    operations.down(project.path, say=print)
    assert registry(project).deployments() == []


def test_the_store_knows_what_is_coming_before_the_first_step(
    project: EngineProject, key: PrivateKey
) -> None:
    deploying(project).apply()
    (before,) = registry(project).deployments()
    deploying(project, "1.1.0", "other")
    kill = {"SHIPCTL_TEST_KILL": "before deploy"}
    assert project.shipctl("apply", "spec.yaml", environ=kill)[0] == -9
    (coming,) = registry(project).deployments()
    assert coming.serving == before.serving
    assert coming.digests > before.digests


def test_the_store_keeps_what_a_paused_release_goes_on_with(project: EngineProject) -> None:
    paused = "- {id: d, uses: file-deploy, with: {fail_at: shifting, fail_how: pause}}"
    project.spec(f"- {{id: a, uses: make, with: {{text: aa}}}}\n{paused}")
    assert project.apply().code == 6
    (known,) = registry(project).deployments()
    assert (known.serving, len(known.manifests)) == ((), 1)


def test_a_publication_keeps_nothing_from_being_retired(project: EngineProject, key: PrivateKey) -> None:
    publishing(project).apply()
    assert registry(project).deployments() == []


def test_history_shows_the_audit_log_and_finds_a_changed_entry(
    project: EngineProject, key: PrivateKey
) -> None:
    deploying(project).apply()
    code, said = project.command("history", "spec.yaml", "--audit")
    assert code == 0
    assert "apply done  demo@1.0.0" in said
    assert "2 entries" in said
    head = said.rsplit("sha256:", 1)[1].strip()
    assert project.command("history", "spec.yaml", "--audit", "--expect-head", head)[0] == 0
    entry = project.state / "store/audit/00000001.json"
    body = json.loads(entry.read_bytes())
    body["actor"]["user"] = "nobody"
    entry.chmod(0o644)
    entry.write_text(json.dumps(body))
    code, said = project.command("history", "spec.yaml", "--audit")
    assert code == 1
    assert "of log audit" in said
    assert "was altered or exchanged" in said
    assert "Traceback" not in said
