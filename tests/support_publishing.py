"""Specs that publish and deploy small packages, and what a test wants to know of the store afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from shipctl import Hooks
from shipctl.engine import operations
from shipctl.evidence.keys import PrivateKey
from shipctl.spec.models import StoreSpec
from shipctl.store.log import audit
from shipctl.store.models import ModelRegistry
from shipctl.store.objects import open_store
from support_engine import EngineProject, Run, Watcher

POLICY = """
apiVersion: shipctl.dev/v1
kind: Policy
signatures:
  required: true
"""


@pytest.fixture
def key(project: EngineProject, monkeypatch: pytest.MonkeyPatch) -> PrivateKey:
    made = PrivateKey.generate()
    monkeypatch.setenv("SIGNING_KEY", made.pem().decode())
    (project.root / "release.pub").write_bytes(made.public.pem().encode())
    return made


def publishing(
    project: EngineProject,
    version: str = "1.0.0",
    text: str = "weights",
    *,
    alias: str = "staging",
    sign: bool = True,
) -> EngineProject:
    """Write a spec that publishes a package with that text in it."""
    signing = "- {id: sign, uses: sign, needs: make, with: {key: '${{ secrets.key }}'}}" if sign else ""
    return project.spec(
        f"""
        - {{id: make, uses: make-package, with: {{text: {text}, label: make}}}}
        {signing}
        - {{id: publish, uses: publish, with: {{alias: {alias}}}}}
        """,
        head="secrets: {key: {env: SIGNING_KEY}}" if sign else "",
        version=version,
    )


def deploying(project: EngineProject, version: str = "1.0.0", text: str = "weights") -> EngineProject:
    """Write a spec that deploys what is in a signed package."""
    return project.spec(
        f"""
        - {{id: make, uses: make-package, with: {{text: {text}, label: make}}}}
        - {{id: sign, uses: sign, needs: make, with: {{key: '${{{{ secrets.key }}}}'}}}}
        - {{id: deploy, uses: package-deploy, needs: [make, sign], inputs: {{package: sign}}}}
        """,
        head="secrets: {key: {env: SIGNING_KEY}}",
        version=version,
    )


def rollback(project: EngineProject, **options: Any) -> Run:
    watcher = Watcher()
    result = operations.rollback(project.path, hooks=Hooks([watcher], installed=False), **options)
    return Run(result, watcher.heard, [], [])


def registry(project: EngineProject, uri: str | None = None) -> ModelRegistry:
    return ModelRegistry(open_store(StoreSpec(uri=uri or str(project.state / "store")), project.root))


def audited(project: EngineProject) -> list[tuple[str, str]]:
    objects = open_store(StoreSpec(uri=str(project.state / "store")), project.root)
    return [(entry.action, entry.subject) for entry in audit(objects).verify()]


def policy(project: EngineProject, trusted: str) -> None:
    (project.root / "shipctl-policy.yaml").write_text(POLICY + f"  {trusted}\n")
