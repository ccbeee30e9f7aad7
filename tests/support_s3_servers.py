"""The S3 servers that several test files use, as fixtures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support_s3 import Certificates, S3Server, certificates, moto_server, shared_gateway, why_no_gateway


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """A quick server that believes anything."""
    with moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A certificate authority of our own, and a server's certificate."""
    return certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def rgw(tmp_path_factory: pytest.TempPathFactory, authority: Certificates) -> Iterator[S3Server]:
    """Ceph's RADOS gateway, one for all workers of the test session."""
    reason = why_no_gateway()
    if reason:
        pytest.skip(reason)
    base = tmp_path_factory.getbasetemp()
    with shared_gateway((base.parent if base.name.startswith("popen-") else base) / "rgw") as server:
        yield server
