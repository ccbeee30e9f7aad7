"""The S3 store against a real server, which compares what arrives with what it was told, and knows who asks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shipctl.errors import StoreError
from support_proxy import Proxy, proxy_to
from support_s3 import Certificates, S3Server, SmallParts, use
from support_s3_calls import CALLS, OURS, get, interrupted, put, write_file

pytestmark = [pytest.mark.slow, pytest.mark.s3]


@pytest.fixture(params=["http", "https"])
def real(
    request: pytest.FixtureRequest,
    rgw: S3Server,
    authority: Certificates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[SmallParts, Proxy]]:
    """A store behind a proxy in front of the gateway; the proxy ends TLS, so it can spoil what is in it."""
    use(monkeypatch, rgw)
    secure = request.param == "https"
    with proxy_to(rgw.endpoint, tls=authority.context() if secure else None) as proxy:
        more = {"ca": str(authority.authority)} if secure else {}
        with SmallParts(rgw.spec(endpoint=proxy.endpoint, **more), tmp_path) as store:
            store.part_size = 256 * 1024
            yield store, proxy


class TestRealServer:
    @pytest.mark.parametrize("size", [100_000, 400_000, 1_000_000])
    def test_bytes_that_were_damaged_on_the_way_are_sent_again(
        self, real: tuple[SmallParts, Proxy], tmp_path: Path, size: int
    ) -> None:
        store, proxy = real
        source = write_file(tmp_path / "file", size)
        fault = proxy.fault("PUT", flip_request=77, times=2)
        put(store, source)
        assert fault.times == 0
        assert len(proxy.seen("PUT")) == 2 + max(
            1, -(-size // store.part_size) if size > 2 * store.part_size else 1
        )
        assert get(store, tmp_path / "back", size) == source.read_bytes()

    def test_small_objects_that_were_damaged_on_the_way_are_sent_again(
        self, real: tuple[SmallParts, Proxy]
    ) -> None:
        store, proxy = real
        fault = proxy.fault("PUT", flip_request=3, times=2)
        assert store.create("log/1", b"some text") is True
        store.write("log/2", b"other text")
        assert fault.times == 0
        assert (store.read("log/1"), store.read("log/2")) == (b"some text", b"other text")

    def test_bytes_that_are_always_damaged_are_never_stored(
        self, real: tuple[SmallParts, Proxy], tmp_path: Path
    ) -> None:
        store, proxy = real
        proxy.fault("PUT", flip_request=77, times=99)
        with pytest.raises(StoreError) as caught:
            put(store, write_file(tmp_path / "file", 100_000))
        assert str(caught.value) == (
            f"cannot upload {store.uri}/blobs/file: the server got other bytes than were sent, 4 times "
            "(XAmzContentSHA256Mismatch); check the file and the network between here and there"
        )
        assert store.stat("blobs/file") is None

    def test_an_interrupted_upload_goes_on_with_what_is_there(
        self, real: tuple[SmallParts, Proxy], tmp_path: Path
    ) -> None:
        store, proxy = real
        source = write_file(tmp_path / "file", 5_000_000)
        arrived = interrupted(store, proxy, source, part=9)
        assert arrived >= 8 * store.part_size
        put(store, source)
        assert proxy.bodies("PUT") == 5_000_000 - arrived
        assert proxy.seen("POST", "?uploads") == []
        assert get(store, tmp_path / "back", 5_000_000) == source.read_bytes()

    @pytest.mark.parametrize("lost", ["POST", "PUT"])
    def test_lost_answers_do_no_harm(self, real: tuple[SmallParts, Proxy], tmp_path: Path, lost: str) -> None:
        store, proxy = real
        source = write_file(tmp_path / "file", 1_000_000)
        proxy.fault(lost, "uploadId=", drop_answer=True)
        put(store, source)
        proxy.fault("PUT", "log/1", drop_answer=True)
        assert store.create("log/1", b"mine") is True
        assert get(store, tmp_path / "back", 1_000_000) == source.read_bytes()
        assert list(store.unfinished(older_than=time.time() + 3600)) == []


@pytest.fixture
def direct(rgw: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallParts]:
    use(monkeypatch, rgw)
    with SmallParts(rgw.spec(), tmp_path) as store:
        store.part_size = 256 * 1024
        yield store


class TestGateway:
    @pytest.mark.parametrize("name", CALLS)
    def test_a_wrong_secret(
        self, direct: SmallParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim")
        with pytest.raises(StoreError) as caught:
            CALLS[name](direct, tmp_path)
        assert str(caught.value).endswith(
            f": {OURS} are a secret key that is not the one of its access key (SignatureDoesNotMatch); correct them"
        )
        assert "geheim" not in str(caught.value)

    def test_an_unknown_access_key(self, direct: SmallParts, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODY")
        with pytest.raises(
            StoreError, match=re.escape("(InvalidAccessKeyId); check the access key and `endpoint:`")
        ):
            direct.check()

    @pytest.mark.parametrize("hours", [-1, 1])
    def test_a_wrong_clock(self, direct: SmallParts, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
        monkeypatch.setattr("minio.time.utcnow", lambda: datetime.now(UTC) + timedelta(hours=hours))
        calls: list[Callable[[], object]] = [
            direct.check,
            lambda: direct.write("x", b"x"),
            lambda: direct.stat("x"),
        ]
        for call in calls:
            with pytest.raises(StoreError, match=re.escape("(RequestTimeTooSkewed); set the clock")):
                call()

    def test_an_upload_of_more_parts_than_a_page_names_goes_on(
        self, rgw: S3Server, direct: SmallParts, tmp_path: Path
    ) -> None:
        source = write_file(tmp_path / "file", 110 * 4096)
        with proxy_to(rgw.endpoint) as proxy:
            spec = direct.spec.model_copy(update={"endpoint": proxy.endpoint})
            with SmallParts(spec, tmp_path) as store:
                store.part_size, store.in_one, store.page = 4096, 8192, 25
                arrived = interrupted(store, proxy, source, part=110)
                assert arrived > 100 * 4096
                put(store, source)
                assert len(proxy.seen("GET", "part-number-marker=")) >= 5
                assert proxy.bodies("PUT") == source.stat().st_size - arrived

    def test_more_unfinished_uploads_than_a_page_names_are_all_found(self, direct: SmallParts) -> None:
        direct.page = 25
        names = {f"many/{number:04d}" for number in range(110)}
        begin = direct._connection.aws.create_multipart_upload
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda name: begin(Bucket=direct.bucket, Key=name), names))
            found = list(direct.unfinished(older_than=time.time() + 3600))
            assert {name.partition("?")[0] for name in found} == names
            assert len(found) == len(names)
            list(threads.map(direct.discard, found))
        assert list(direct.unfinished(older_than=time.time() + 3600)) == []

    def test_a_killed_upload_is_continued_by_another_process(
        self, rgw: S3Server, direct: SmallParts, tmp_path: Path
    ) -> None:
        source = write_file(tmp_path / "file", 8_000_000)
        with proxy_to(rgw.endpoint) as proxy:
            proxy.fault("PUT", "partNumber=", delay=0.1, times=999)
            script = (
                "import sys, hashlib, pathlib\n"
                "from support_s3 import SmallParts\n"
                "from shipctl.spec.models import StoreSpec\n"
                "uri, endpoint, path = sys.argv[1:]\n"
                "store = SmallParts(StoreSpec(uri=uri, endpoint=endpoint, region='us-east-1'), pathlib.Path('.'))\n"
                "store.part_size, store.threads, data = 262144, 2, pathlib.Path(path).read_bytes()\n"
                "digest = hashlib.sha256(data).hexdigest()\n"
                "store.upload('blobs/file', pathlib.Path(path), sha256=digest, size=len(data))\n"
            )
            tests = str(Path(__file__).parents[2])
            process = subprocess.Popen(
                [sys.executable, "-c", script, direct.uri, proxy.endpoint, str(source)],
                env={**os.environ, "PYTHONPATH": tests},
            )
            until = time.monotonic() + 60
            while len(proxy.seen("PUT", "partNumber=")) < 8 and time.monotonic() < until:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert direct.stat("blobs/file") is None
        with (
            proxy_to(rgw.endpoint) as proxy,
            SmallParts(direct.spec.model_copy(update={"endpoint": proxy.endpoint}), tmp_path) as store,
        ):
            store.part_size = 256 * 1024
            put(store, source)
            assert proxy.bodies("PUT") <= 8_000_000 - 5 * store.part_size
            assert get(store, tmp_path / "back", 8_000_000) == source.read_bytes()
