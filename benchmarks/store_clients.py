"""What the benchmark of stores measures: one client moving one set of files, in a process of its own.

    store_clients.py CLIENT publish|fetch LIST PREFIX FOLDER

LIST is a JSON file of [path, SHA-256, bytes]; the server and the bucket come from the environment. FOLDER is where
`fetch` writes, and where shipctl's local store is.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shipctl.spec.models import StoreSpec
from shipctl.stages.artifacts import Artifact, FileEntry
from shipctl.store.depot import open_depot
from shipctl.store.local import LocalStore

THREADS = 16
PART = 32 << 20
_FEW = 16
"""From so many files on, they go side by side."""
File = tuple[str, str, int]


def main() -> None:
    """Do what the command line says."""
    client, act, names, prefix, folder = sys.argv[1:]
    files = [(path, sha256, int(size)) for path, sha256, size in json.loads(Path(names).read_text())]
    CLIENTS[client, act](files, prefix, Path(folder))


def shipctl_publish(files: list[File], prefix: str, folder: Path) -> None:
    """Publish as `shipctl apply` does: ask what is there, send the rest and verify it meanwhile, then the manifest."""
    entries = tuple(FileEntry(path=Path(path).name, sha256=sha256, size=size) for path, sha256, size in files)
    spec = StoreSpec(uri=f"s3://{os.environ['BUCKET']}/{prefix}")
    with open_depot(spec, folder, LocalStore(folder)) as depot:
        depot.publish(Artifact(files=entries))


def shipctl_fetch(files: list[File], prefix: str, folder: Path) -> None:
    """Fetch into a local store, verified."""
    entries = [FileEntry(path=Path(path).name, sha256=sha256, size=size) for path, sha256, size in files]
    spec = StoreSpec(uri=f"s3://{os.environ['BUCKET']}/{prefix}")
    with open_depot(spec, folder, LocalStore(folder)) as depot:
        depot.fetch(entries)


def minio_publish(files: list[File], prefix: str, _folder: Path) -> None:
    """The minio client's own call with its own settings: parts of 5 MiB, three side by side."""
    _minio_publish(files, prefix)


def tuned_publish(files: list[File], prefix: str, _folder: Path) -> None:
    """The same with the parts that shipctl makes, as many at a time."""
    _minio_publish(files, prefix, part_size=PART, num_parallel_uploads=4)


def _minio_publish(files: list[File], prefix: str, **settings: int) -> None:
    client = _minio()
    bucket = os.environ["BUCKET"]

    def put(file: File) -> None:
        client.fput_object(bucket, f"{prefix}/{Path(file[0]).name}", file[0], **settings)

    _each(put, files)


def minio_fetch(files: list[File], prefix: str, folder: Path) -> None:
    """The minio client's own call; it has none that takes ranges side by side."""
    client = _minio()
    bucket = os.environ["BUCKET"]

    def get(file: File) -> None:
        name = Path(file[0]).name
        client.fget_object(bucket, f"{prefix}/{name}", str(folder / name))

    _each(get, files)


def _minio() -> Any:
    import minio
    import urllib3

    host = os.environ["AWS_ENDPOINT_URL_S3"].removeprefix("http://")
    keys = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    pool = urllib3.PoolManager(maxsize=2 * THREADS)  # its own has 10, and complains
    return minio.Minio(host, *keys, secure=False, region=os.environ["AWS_REGION"], http_client=pool)


def boto3_publish(files: list[File], prefix: str, _folder: Path) -> None:
    """boto3's transfer manager with its own settings."""
    client = _boto3()

    def put(file: File) -> None:
        client.upload_file(file[0], os.environ["BUCKET"], f"{prefix}/{Path(file[0]).name}")

    _each(put, files)


def boto3_fetch(files: list[File], prefix: str, folder: Path) -> None:
    """boto3's transfer manager with its own settings."""
    client = _boto3()

    def get(file: File) -> None:
        name = Path(file[0]).name
        client.download_file(os.environ["BUCKET"], f"{prefix}/{name}", str(folder / name))

    _each(get, files)


def _boto3() -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3", config=Config(s3={"addressing_style": "path"}, max_pool_connections=2 * THREADS)
    )


def _each(work: Callable[[File], None], files: list[File]) -> None:
    if len(files) < _FEW:
        for file in files:
            work(file)
        return
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(work, files))


CLIENTS: dict[tuple[str, str], Callable[[list[File], str, Path], None]] = {
    ("shipctl", "publish"): shipctl_publish,
    ("shipctl", "fetch"): shipctl_fetch,
    ("minio", "publish"): minio_publish,
    ("minio", "fetch"): minio_fetch,
    ("minio, tuned", "publish"): tuned_publish,
    ("minio, tuned", "fetch"): minio_fetch,
    ("boto3", "publish"): boto3_publish,
    ("boto3", "fetch"): boto3_fetch,
}

if __name__ == "__main__":
    main()
