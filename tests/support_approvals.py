"""People with keys and accounts, the policy that names them, and a spec whose release waits for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shipctl import Hooks
from shipctl.engine import deciding, operations, promotion
from shipctl.evidence.keys import PrivateKey
from shipctl.spec.models import StoreSpec
from shipctl.store.log import LogEntry, audit
from shipctl.store.objects import open_store
from support_engine import EngineProject, Run, Watcher

BOB = PrivateKey.generate()
POLICY = """\
apiVersion: shipctl.dev/v1
kind: Policy
approvers:
  - {name: ada, roles: [owner], users: [ada-ci]}
  - {name: bob, roles: [owner], keys: [bob.pub]}
  - {name: carol, roles: [owner, operator]}
  - {name: olga, roles: [operator]}
"""
ENVIRONMENTS = "environments: {staging: {vars: {asks: 'no'}}, production: {vars: {asks: 'no'}}}"
Become = Callable[..., None]


@pytest.fixture
def be(monkeypatch: pytest.MonkeyPatch) -> Become:
    """Become somebody on this machine: ada, to begin with. With ``ci``, somebody whom a CI knows by that name."""
    for name in (
        "GITHUB_ACTIONS",
        "GITHUB_ACTOR",
        "GITLAB_CI",
        "BUILD_URL",
        "SHIPCTL_POLICY",
        "SHIPCTL_STORE",
    ):
        monkeypatch.delenv(name, raising=False)

    def become(user: str, ci: str | None = None) -> None:
        monkeypatch.setenv("LOGNAME", user)
        monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
        if ci is not None:
            monkeypatch.setenv("GITHUB_ACTIONS", "true")
            monkeypatch.setenv("GITHUB_ACTOR", ci)

    become("ada")
    return become


def governed(project: EngineProject, policy: str = POLICY) -> EngineProject:
    """Give a project the policy and its keys."""
    (project.root / "bob.pub").write_text(BOB.public.pem())
    (project.root / "bob.key").write_bytes(BOB.pem())
    (project.root / "shipctl-policy.yaml").write_text(policy)
    return project


def gated(
    project: EngineProject,
    version: str = "1.0.0",
    *,
    options: str = "",
    approval: str = "{roles: [owner]}",
    more: str = "",
    head: str = "",
) -> EngineProject:
    """Write a spec whose release needs an approval."""
    asks = f", approval: {approval}" if approval else ""
    return project.spec(
        f"""
        - {{id: a, uses: make, with: {{text: text {version}, label: a}}}}
        - {{id: d, uses: file-deploy, with: {{{options}}}{asks}{more}}}
        """,
        version=version,
        head=head,
    )


def approve(
    project: EngineProject, decision: deciding.Decision = "approve", **options: Any
) -> deciding.Decided:
    return deciding.decide(project.path, decision, **options)


def rollback(project: EngineProject, **options: Any) -> Run:
    watcher = Watcher()
    result = operations.rollback(project.path, hooks=Hooks([watcher], installed=False), **options)
    return Run(result, watcher.heard, [], [])


def promote(
    project: EngineProject, source: str = "staging", target: str = "production", **options: Any
) -> promotion.Promoted:
    return promotion.promote(project.path, source, target, hooks=Hooks([], installed=False), **options)


def audited(project: EngineProject, uri: str | None = None) -> list[LogEntry]:
    store = StoreSpec(uri=uri or str(project.state / "store"))
    return audit(open_store(store, project.root)).verify()


def actions(project: EngineProject, uri: str | None = None) -> list[str]:
    return [entry.action for entry in audited(project, uri)]


def forged(
    project: EngineProject, change: Callable[[dict[str, Any]], None], folder: Path | None = None
) -> None:
    """Change the newest statement in the store by hand, as somebody does who may write to it."""
    store = folder or project.state / "store"
    path = max((store / "approvals").rglob("*.json"))
    body = json.loads(path.read_bytes())
    change(body)
    path.chmod(0o644)
    path.write_text(json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
