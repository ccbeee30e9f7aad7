"""The registry of models in a real S3 server: many publishers, and nobody is lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shipctl import GateError
from shipctl.spec.models import StoreSpec
from shipctl.store.log import audit
from shipctl.store.models import ModelRegistry
from shipctl.store.objects import open_store
from support_registry import package
from support_s3 import S3Server, use

pytestmark = [pytest.mark.slow, pytest.mark.s3]
PUBLISHERS = 16


@pytest.fixture
def spec(rgw: S3Server, monkeypatch: pytest.MonkeyPatch) -> StoreSpec:
    use(monkeypatch, rgw)
    return rgw.spec()


def test_of_many_publishers_of_one_version_exactly_one_wins(spec: StoreSpec, tmp_path: Path) -> None:
    def publish(number: int) -> str:
        registry = ModelRegistry(open_store(spec, tmp_path))
        try:
            return registry.register(package(content=f"build {number}"), lineage={}).digest
        except GateError as exc:
            return "told" if "versions are immutable" in str(exc) else str(exc)

    with ThreadPoolExecutor(PUBLISHERS) as threads:
        outcomes = sorted(threads.map(publish, range(PUBLISHERS)))
    registry = ModelRegistry(open_store(spec, tmp_path))
    assert outcomes == sorted([registry.resolve("digits").digest, *["told"] * (PUBLISHERS - 1)])
    assert len(registry.history("digits")) == 1


def test_publishers_of_different_versions_all_get_in(spec: StoreSpec, tmp_path: Path) -> None:
    def publish(number: int) -> str:
        registry = ModelRegistry(open_store(spec, tmp_path))
        registry.register(package(f"1.{number}.0"), lineage={})
        registry.alias(f"digits@1.{number}.0", "production")
        return f"1.{number}.0"

    with ThreadPoolExecutor(PUBLISHERS) as threads:
        published = list(threads.map(publish, range(PUBLISHERS)))
    registry = ModelRegistry(open_store(spec, tmp_path))
    assert [version.version for version in registry.versions("digits")] == published
    history = registry.history("digits")
    assert len(history) == 2 * PUBLISHERS
    moves = [e.details["aliases"]["production"] for e in history if e.action == "alias"]
    assert [move["from"] for move in moves] == [None, *(move["to"] for move in moves[:-1])]
    assert len(audit(registry.objects).verify(expect_head=None)) == 2 * PUBLISHERS
