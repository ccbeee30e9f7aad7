"""What goes wrong between here and an S3 server: it is put right, or said in one sentence that helps."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import CorruptArtifactError, SpecError, StoreError
from shipctl.spec.models import StoreSpec
from shipctl_plugins._s3 import connection as s3_connection
from shipctl_plugins._s3.faults import Fault, Retries
from shipctl_plugins._s3.multipart import part_size_for
from support_proxy import Proxy, proxy_to, s3_error
from support_s3 import S3Server, SmallParts, free_port, use
from support_s3_calls import CALLS, OURS, PART, get, interrupted, put, write_file

pytestmark = pytest.mark.slow
MIB = 1 << 20


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four parts, of which the last is short."""
    return write_file(tmp_path_factory.mktemp("large") / "large", 3 * PART + 12345)


@pytest.fixture
def proxy(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    use(monkeypatch, moto)
    with proxy_to(moto.endpoint) as proxy:
        yield proxy


@pytest.fixture
def store(moto: S3Server, proxy: Proxy, tmp_path: Path) -> Iterator[SmallParts]:
    with SmallParts(moto.spec(endpoint=proxy.endpoint), tmp_path) as store:
        store.write("there", b"there")
        store.stat("not/there")  # now it knows that the bucket exists
        proxy.reset()
        yield store


# -- what passes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("fault", ["503", "502 page", "cut", "lost"])
def test_every_call_is_repeated_after_a_passing_fault(
    store: SmallParts, proxy: Proxy, tmp_path: Path, name: str, fault: str
) -> None:
    what: dict[str, dict[str, Any]] = {
        "503": {"answer": (503, s3_error("SlowDown", "please reduce your request rate")), "times": 2},
        "502 page": {"answer": (502, "<html>bad gateway"), "headers": {"Content-Type": "text/html"}},
        "cut": {"cut_answer": 0},
        "lost": {"drop_answer": True},
    }
    proxy.fault(**what[fault])
    result = CALLS[name](store, tmp_path)
    expected = {"read": b"there", "create": True, "download": b"there"}
    assert result == expected.get(name, result)
    assert proxy.faults[0].times == 0
    present = {each.key: each.size for each in store.list("")}
    assert present == {
        **({} if name == "delete" else {"there": 5}),
        **({"new": 3} if name in {"write", "create"} else {}),
        **({"blobs/file": 1000} if name == "upload" else {}),
        **({"blobs/file": 2 * PART + 1} if name == "upload in parts" else {}),
    }


def test_a_server_that_stays_away_is_named_with_the_reason(store: SmallParts, proxy: Proxy) -> None:
    proxy.fault(answer=(503, s3_error("SlowDown", "please reduce your request rate")), times=99)
    with pytest.raises(StoreError) as caught:
        store.read("there")
    assert str(caught.value) == (
        f"cannot read {store.uri}/there: SlowDown: please reduce your request rate (tried 4 times in 0 s); "
        f"check {proxy.endpoint} and run the same command again"
    )
    assert len(proxy.requests) == 4


def test_a_server_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = S3Server(f"http://127.0.0.1:{free_port()}", "someone", "something")
    use(monkeypatch, server)
    spec = StoreSpec(uri="s3://models", endpoint=server.endpoint)
    with SmallParts(spec, tmp_path) as store, pytest.raises(StoreError) as caught:
        store.check()
    assert str(caught.value) == (
        f"cannot list s3://models/: Connection refused (tried 4 times in 0 s); "
        f"check {server.endpoint} and run the same command again"
    )


def test_a_server_that_says_when_is_asked_again_then(
    store: SmallParts, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("shipctl_plugins._s3.faults.time.sleep", waits.append)
    proxy.fault(answer=(429, s3_error("TooManyRequests")), headers={"Retry-After": "7"})
    assert store.read("there") == b"there"
    assert waits == [7.0]


def test_waits_grow_and_differ() -> None:
    waits: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shipctl_plugins._s3.faults.time.sleep", waits.append)
        for attempt in range(1, 7):
            for _ in range(50):
                Retries(first=0.2, longest=3).wait(attempt, Fault("SlowDown", passing=True))
    longest = [max(waits[start : start + 50]) for start in range(0, 300, 50)]
    bounds = [0.2, 0.4, 0.8, 1.6, 3, 3]
    assert all(bound / 2 < seen <= bound for seen, bound in zip(longest, bounds, strict=True))
    assert len(set(waits)) == 300


def test_a_server_that_falls_silent_is_asked_again(
    store: SmallParts, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.close()
    monkeypatch.setattr(s3_connection, "_READ", 0.2)
    proxy.fault("GET", delay=0.6)
    assert store.read("there") == b"there"
    assert len(proxy.requests) == 2


# -- lost answers --------------------------------------------------------------------------------------------


def test_a_create_whose_answer_was_lost_has_won(store: SmallParts, proxy: Proxy) -> None:
    proxy.fault("PUT", drop_answer=True)
    assert store.create("log/1", b"mine") is True
    assert store.read("log/1") == b"mine"


def test_a_create_that_never_arrived_and_then_lost_has_lost(store: SmallParts, proxy: Proxy) -> None:
    store.write("log/1", b"theirs")
    proxy.fault("PUT", cut_request=0)
    assert store.create("log/1", b"mine") is False
    assert store.read("log/1") == b"theirs"


def test_equal_bytes_of_another_are_not_ours(store: SmallParts) -> None:
    """Without a lost answer there is no doubt who was first."""
    assert store.create("log/1", b"same") is True
    assert store.create("log/1", b"same") is False


def test_a_conflict_of_conditional_writes_is_tried_again(store: SmallParts, proxy: Proxy) -> None:
    proxy.fault("PUT", answer=(409, s3_error("ConditionalRequestConflict")))
    assert store.create("log/1", b"mine") is True


def test_a_server_that_ignores_conditions_is_refused(store: SmallParts, proxy: Proxy) -> None:
    proxy.fault("PUT", without="if-none-match", times=9)
    with pytest.raises(StoreError) as caught:
        store.create("log/1", b"mine")
    assert str(caught.value) == (
        f"cannot publish to {store.uri}: {proxy.endpoint} ignores conditional writes (If-None-Match), "
        "so two publishers could replace each other's versions; update the server, or use another"
    )


def test_an_upload_whose_completion_was_not_answered_is_read_back(
    store: SmallParts, proxy: Proxy, large: Path, tmp_path: Path
) -> None:
    proxy.fault("POST", "uploadId=", drop_answer=True)
    put(store, large)
    assert len(proxy.seen("POST", "?uploads")) == 1, "it was sent twice"
    assert proxy.bodies("PUT") == large.stat().st_size
    assert get(store, tmp_path / "back", large.stat().st_size) == large.read_bytes()


def test_a_completion_that_fails_behind_a_200_is_repeated(
    store: SmallParts, proxy: Proxy, large: Path
) -> None:
    proxy.fault(
        "POST", "uploadId=", answer=(200, s3_error("InternalError", "we encountered an internal error"))
    )
    put(store, large)
    found = store.stat("blobs/file")
    assert found is not None
    assert found.size == large.stat().st_size


def test_an_upload_that_somebody_else_gave_up_is_begun_anew(
    store: SmallParts, proxy: Proxy, large: Path, tmp_path: Path
) -> None:
    proxy.fault("PUT", "partNumber=2", answer=(404, s3_error("NoSuchUpload")))
    put(store, large)
    assert get(store, tmp_path / "back", large.stat().st_size) == large.read_bytes()


def test_an_upload_that_is_always_given_up_fails(store: SmallParts, proxy: Proxy, large: Path) -> None:
    proxy.fault("PUT", "partNumber=", answer=(404, s3_error("NoSuchUpload")), times=99)
    with pytest.raises(StoreError) as caught:
        put(store, large)
    assert str(caught.value) == (
        f"cannot upload {store.uri}/blobs/file: the upload was given up 3 times by somebody else; "
        "look for a lifecycle rule of the bucket that aborts uploads, and run the same command again"
    )


def test_deleting_is_repeated_where_a_single_key_was_busy(store: SmallParts, proxy: Proxy) -> None:
    busy = "<DeleteResult><Error><Key>there</Key><Code>SlowDown</Code><Message>wait</Message></Error></DeleteResult>"
    proxy.fault("POST", "delete", answer=(200, busy))
    store.delete(["there"])
    assert list(store.list("")) == []


def test_a_key_that_may_not_be_deleted_is_named(store: SmallParts, proxy: Proxy) -> None:
    locked = "<Error><Key>there</Key><Code>AccessDenied</Code><Message>locked</Message></Error>"
    proxy.fault("POST", "delete", answer=(200, f"<DeleteResult>{locked}</DeleteResult>"))
    with pytest.raises(StoreError, match=re.escape("AccessDenied: locked (there)")):
        store.delete(["there"])


# -- parts and ranges ----------------------------------------------------------------------------------------


def test_only_the_part_that_was_cut_is_sent_again(
    store: SmallParts, proxy: Proxy, large: Path, tmp_path: Path
) -> None:
    proxy.fault("PUT", "partNumber=2", cut_request=100_000)
    put(store, large)
    assert len(proxy.seen("PUT", "partNumber=")) == 5
    assert proxy.bodies("PUT") <= large.stat().st_size + 100_000 + 65536
    assert get(store, tmp_path / "back", large.stat().st_size) == large.read_bytes()


def test_a_download_goes_on_where_it_was_cut(
    store: SmallParts, proxy: Proxy, large: Path, tmp_path: Path
) -> None:
    put(store, large)
    proxy.reset()
    proxy.fault("GET", cut_answer=7_000)  # the short part too is longer than that
    received: list[int] = []
    store.download("blobs/file", tmp_path / "back", size=large.stat().st_size, moved=received.append)
    assert (tmp_path / "back").read_bytes() == large.read_bytes()
    assert sum(received) == large.stat().st_size
    starts = sorted(
        int(seen.headers["range"].removeprefix("bytes=").split("-")[0]) for seen in proxy.requests
    )
    assert len(starts) == 5
    assert {0, PART, 2 * PART, 3 * PART} < set(starts)
    (again,) = set(starts) - {0, PART, 2 * PART, 3 * PART}
    assert again % PART == 7_000


def test_a_download_that_fails_leaves_no_file(
    store: SmallParts, proxy: Proxy, large: Path, tmp_path: Path
) -> None:
    put(store, large)
    proxy.fault("GET", cut_answer=10, times=99)
    with pytest.raises(StoreError, match="cannot download"):
        get(store, tmp_path / "back", large.stat().st_size)
    assert list(tmp_path.iterdir()) == []


def test_an_object_of_another_size_says_so(store: SmallParts, tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        get(store, tmp_path / "back", 7, "there")
    assert (
        str(caught.value)
        == f"{store.uri}/there has 5 bytes and not 7; somebody replaced it: publish it again"
    )


@pytest.mark.parametrize("after", [1, 3])
def test_a_file_that_changes_while_it_is_sent_is_not_published(
    store: SmallParts, proxy: Proxy, tmp_path: Path, after: int
) -> None:
    store.threads = 1
    source = write_file(tmp_path / "file", 3 * PART)

    def change(_count: int) -> None:
        if len(proxy.seen("PUT")) == after:
            with source.open("r+b") as stream:
                stream.write(b"changed")

    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    with pytest.raises(StoreError) as caught:
        store.upload("blobs/file", source, sha256=digest, size=3 * PART, moved=change)
    assert str(caught.value) == f"{source} changed while it was sent; run the same command again"
    assert len(proxy.seen("PUT")) == after
    assert store.stat("blobs/file") is None


@pytest.mark.parametrize("size", [1000, PART, 3 * PART])
def test_a_file_that_is_not_what_its_digest_says_is_not_published(
    store: SmallParts, proxy: Proxy, tmp_path: Path, size: int
) -> None:
    source = write_file(tmp_path / "file", size)
    found = hashlib.sha256(source.read_bytes()).hexdigest()
    with pytest.raises(CorruptArtifactError) as caught:
        store.upload("blobs/file", source, sha256="0" * 64, size=size)
    assert str(caught.value) == (
        f"{source} is damaged: its digest is {found[:12]}… and not 000000000000…; make it again"
    )
    assert caught.value.digest == "0" * 64
    assert store.stat("blobs/file") is None


def test_only_so_many_large_files_are_sent_at_a_time(
    store: SmallParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.threads = 2
    send, lock = store._connection.put, threading.Lock()
    under_way, most = 0, 0

    def counted(*args: Any, **fields: Any) -> str:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.05)
        try:
            return send(*args, **fields)
        finally:
            with lock:
                under_way -= 1

    monkeypatch.setattr(store._connection, "put", counted)
    files = [write_file(tmp_path / str(seed), PART + 1, seed=seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda path: put(store, path, f"blobs/{path.name}"), files))
    assert most == 2


def test_the_end_of_a_damaged_file_is_never_sent(
    store: SmallParts, proxy: Proxy, large: Path, tmp_path: Path
) -> None:
    whole = write_file(tmp_path / "file", 2 * PART)
    with pytest.raises(CorruptArtifactError):
        store.upload("blobs/file", whole, sha256="0" * 64, size=2 * PART)
    with pytest.raises(CorruptArtifactError):
        store.upload("blobs/large", large, sha256="0" * 64, size=large.stat().st_size)
    assert all(seen.received < seen.length for seen in proxy.seen("PUT", "blobs/file"))
    assert proxy.seen("PUT", "partNumber=3&") != []
    assert proxy.seen("PUT", "partNumber=4&") == []
    assert proxy.seen("POST", "uploadId=") == []


def test_bytes_that_are_sent_again_are_told_of_once(store: SmallParts, proxy: Proxy, tmp_path: Path) -> None:
    source = write_file(tmp_path / "file", 2 * PART)
    proxy.fault("PUT", cut_request=PART + 1000)
    sent: list[int] = []
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    store.upload("blobs/file", source, sha256=digest, size=2 * PART, moved=sent.append)
    assert len(proxy.seen("PUT")) == 2
    assert sum(sent) == 2 * PART
    assert min(sent) > 0
    assert len(sent) > 1, "nobody heard how far it was"


@pytest.mark.parametrize("gigabytes", [1, 100, 156, 157, 1000, 5000])
def test_no_file_has_more_than_ten_thousand_parts(gigabytes: int) -> None:
    size = gigabytes << 30
    part = part_size_for(size, 16 * MIB)
    assert -(-size // part) <= 10_000
    assert part == 16 * MIB or (part % MIB == 0 and size / part > 9_000)


# -- interrupted uploads -------------------------------------------------------------------------------------


def test_an_interrupted_upload_goes_on_with_what_is_there(
    store: SmallParts, proxy: Proxy, large: Path, tmp_path: Path
) -> None:
    size = large.stat().st_size
    arrived = interrupted(store, proxy, large, part=4)
    assert arrived >= 2 * PART
    with SmallParts(store.spec, tmp_path) as another:
        put(another, large)
        assert proxy.bodies("PUT") == size - arrived
        assert proxy.seen("POST", "?uploads") == []
        assert get(another, tmp_path / "back", size) == large.read_bytes()
        assert list(another.unfinished(older_than=time.time() + 3600)) == []


def test_parts_of_another_content_are_sent_again(
    store: SmallParts, proxy: Proxy, large: Path, tmp_path: Path
) -> None:
    interrupted(store, proxy, large, part=4)
    changed = write_file(tmp_path / "changed", large.stat().st_size, seed=1)
    put(store, changed)
    assert proxy.bodies("PUT") == changed.stat().st_size
    assert get(store, tmp_path / "back", changed.stat().st_size) == changed.read_bytes()


def test_an_upload_in_other_parts_is_not_continued(
    store: SmallParts, proxy: Proxy, large: Path, tmp_path: Path
) -> None:
    interrupted(store, proxy, large, part=4)
    (left,) = store.unfinished(older_than=time.time())
    store.part_size = PART + 1000
    put(store, large)
    assert proxy.bodies("PUT") == large.stat().st_size
    assert get(store, tmp_path / "back", large.stat().st_size) == large.read_bytes()
    assert list(store.unfinished(older_than=time.time())) == [left], "somebody may be working on it right now"


def test_an_upload_in_other_parts_that_nobody_works_on_is_given_up(
    store: SmallParts, proxy: Proxy, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(store, proxy, large, part=4)
    store.part_size = PART + 1000
    monkeypatch.setattr("shipctl_plugins._s3.multipart._STALE", -1.0)
    put(store, large)
    assert list(store.unfinished(older_than=time.time())) == []


def test_a_list_of_uploads_that_does_not_say_how_it_goes_on_is_followed_all_the_same(
    store: SmallParts, proxy: Proxy
) -> None:
    begun = "<Initiated>2020-01-01T00:00:00.000Z</Initiated>"
    entry = f"<Upload><Key>first</Key><UploadId>1</UploadId>{begun}</Upload>"
    page = f"<ListMultipartUploadsResult><IsTruncated>true</IsTruncated>{entry}</ListMultipartUploadsResult>"
    proxy.fault("GET", "uploads", answer=(200, page), times=2)
    assert list(store.unfinished(older_than=time.time())) == ["first?uploadId=1"]
    assert "key-marker=first&upload-id-marker=1" in proxy.requests[1].target
    assert len(proxy.requests) == 2, "a page of nothing new is no reason to go on for ever"


def test_an_upload_of_a_longer_key_is_left_alone(store: SmallParts, proxy: Proxy, large: Path) -> None:
    put_to = "blobs/file-of-another"
    broken = proxy.fault("PUT", "partNumber=4&", cut_request=1000, times=99)
    with pytest.raises(StoreError):
        put(store, large, put_to)
    proxy.faults.remove(broken)
    proxy.requests.clear()
    put(store, large)
    assert proxy.bodies("PUT") == large.stat().st_size
    (left,) = store.unfinished(older_than=time.time())
    assert left.startswith(f"{put_to}?uploadId=")


# -- what does not pass ----------------------------------------------------------------------------------------


REFUSALS = {
    (400, "ExpiredToken"): f"{OURS} have expired (ExpiredToken); get new ones and run the same command again",
    (403, "InvalidAccessKeyId"): (
        f"the server does not know {OURS} (InvalidAccessKeyId); check the access key and `endpoint:`"
    ),
    (403, "SignatureDoesNotMatch"): (
        f"{OURS} are a secret key that is not the one of its access key (SignatureDoesNotMatch); correct them"
    ),
    (403, "AccessDenied"): (
        f"{OURS} may not do this (AccessDenied); "
        "check them, or ask for reading, writing and listing of bucket 'BUCKET'"
    ),
    (301, "PermanentRedirect"): "the bucket is in region eu-west-3; set `region: eu-west-3`",
    (
        400,
        "KMS.DisabledException",
    ): "KMS.DisabledException: injected; check `store:` and ask who runs ENDPOINT",
}


@pytest.mark.parametrize("name", CALLS)
def test_what_does_not_pass_is_said_at_once(
    store: SmallParts, proxy: Proxy, tmp_path: Path, name: str
) -> None:
    for (status, code), reason in REFUSALS.items():
        proxy.reset()
        headers = {"x-amz-bucket-region": "eu-west-3"} if code == "PermanentRedirect" else {}
        proxy.fault(answer=(status, s3_error(code)), headers=headers, times=99)
        with pytest.raises(StoreError) as caught:
            CALLS[name](store, tmp_path)
        said = reason.replace("BUCKET", store.bucket).replace("ENDPOINT", proxy.endpoint)
        assert str(caught.value).startswith("cannot ")
        assert str(caught.value).endswith(f": {said}")
        assert 1 <= len(proxy.requests) <= 2, f"{code}: it was tried again"


@pytest.mark.parametrize("name", CALLS)
def test_a_missing_bucket_is_said_at_once(moto: S3Server, proxy: Proxy, tmp_path: Path, name: str) -> None:
    with SmallParts(StoreSpec(uri="s3://no-such-bucket/x", endpoint=proxy.endpoint), tmp_path) as store:
        with pytest.raises(StoreError) as caught:
            CALLS[name](store, tmp_path)
        assert str(caught.value).endswith(
            f": there is no bucket 'no-such-bucket' at {proxy.endpoint}; create it or correct `uri:`"
        )
        assert len(proxy.requests) <= 2


def test_a_clock_that_is_wrong_is_said_with_the_difference(store: SmallParts, proxy: Proxy) -> None:
    headers = {"Date": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 3600))}
    proxy.fault(answer=(403, s3_error("RequestTimeTooSkewed")), headers=headers)
    with pytest.raises(StoreError) as caught:
        store.read("there")
    assert str(caught.value) == (
        f"cannot read {store.uri}/there: this machine's clock is 60 min behind the server's (RequestTimeTooSkewed); "
        "set the clock and run the same command again"
    )


@pytest.mark.parametrize(
    "uri", ["s3://", "s3:///prefix", "s3://a", "s3://bucket/a//b", "s3://bucket?x=1", "s3://bucket name"]
)
def test_a_uri_that_cannot_be_meant_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(SpecError) as caught:
        SmallParts(StoreSpec(uri=uri), tmp_path)
    assert str(caught.value) == f"store {uri!r} is not s3://bucket/prefix; correct `uri:`"


def test_a_uri_with_a_secret_is_refused_without_showing_it(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        SmallParts(StoreSpec(uri="s3://key:geheim@bucket"), tmp_path)
    assert str(caught.value) == "store 's3://…@bucket' is not s3://bucket/prefix; correct `uri:`"


@pytest.mark.parametrize(
    "endpoint", ["minio:9000", "ftp://minio", "http://minio/path", "http://u:geheim@minio"]
)
def test_an_endpoint_that_cannot_be_meant_is_refused(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(SpecError, match=re.escape("is not http(s)://host:port")) as caught:
        SmallParts(StoreSpec(uri="s3://bucket", endpoint=endpoint), tmp_path)
    assert "geheim" not in str(caught.value)
