"""What tests of the S3 store do with it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from shipctl.errors import StoreError
from support_proxy import Proxy
from support_s3 import SmallParts

PART = SmallParts.part_size
Act = Callable[[SmallParts, Path], object]


def put(store: SmallParts, source: Path, key: str = "blobs/file") -> None:
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    store.upload(key, source, sha256=digest, size=source.stat().st_size)


def get(store: SmallParts, target: Path, size: int, key: str = "blobs/file") -> bytes:
    store.download(key, target, size=size)
    return target.read_bytes()


def write_file(path: Path, size: int, seed: int = 0) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


OURS = "the credentials from the environment (AWS_ACCESS_KEY_ID)"
CALLS: dict[str, Act] = {
    "stat": lambda store, _: store.stat("there"),
    "list": lambda store, _: list(store.list("")),
    "read": lambda store, _: store.read("there"),
    "write": lambda store, _: store.write("new", b"new"),
    "create": lambda store, _: store.create("new", b"new"),
    "delete": lambda store, _: store.delete(["there"]),
    "upload": lambda store, folder: put(store, write_file(folder / "file", 1000)),
    "upload in parts": lambda store, folder: put(store, write_file(folder / "file", 2 * PART + 1)),
    "download": lambda store, folder: get(store, folder / "back", 5, "there"),
    "unfinished": lambda store, _: list(store.unfinished(older_than=0)),
}


def interrupted(store: SmallParts, proxy: Proxy, source: Path, part: int) -> int:
    """Upload with a connection that breaks at one part for good; return the bytes of the parts that arrived."""
    broken = proxy.fault("PUT", f"partNumber={part}&", cut_request=1000, times=99)
    with pytest.raises(StoreError, match="cannot upload"):
        put(store, source)
    proxy.faults.remove(broken)
    whole = [seen for seen in proxy.seen("PUT", "partNumber=") if f"partNumber={part}&" not in seen.target]
    assert all(seen.received == seen.length for seen in whole)
    assert store.stat("blobs/file") is None
    proxy.requests.clear()
    return sum(seen.length for seen in whole)
