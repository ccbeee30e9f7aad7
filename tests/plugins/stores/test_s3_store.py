"""The S3 store against moto, which is quick, and against Ceph's RADOS gateway, which is a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shipctl.store.objects import ObjectStore
from shipctl.testing.stores import StoreConformance
from shipctl_plugins.stores.s3_store import S3Store
from support_s3 import S3Server, SmallParts, use


@pytest.mark.slow
class TestOnMoto(StoreConformance):
    part_size = SmallParts.part_size

    @pytest.fixture
    def store(self, moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
        use(monkeypatch, moto)
        with SmallParts(moto.spec(prefix="some/where"), tmp_path) as store:
            yield store

    @pytest.mark.skip(reason="moto says that every upload was begun in 2010")
    def test_an_interrupted_upload_can_be_given_up(self, store: ObjectStore, tmp_path: Path) -> None: ...


@pytest.mark.slow
@pytest.mark.s3
class TestOnGateway(StoreConformance):
    part_size = 256 * 1024
    many = 1100

    @pytest.fixture
    def store(self, rgw: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
        use(monkeypatch, rgw)
        with SmallParts(rgw.spec(prefix="some/where"), tmp_path) as store:
            store.part_size = self.part_size
            yield store
