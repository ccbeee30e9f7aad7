"""Where Triton in a cluster reads its models: folders by digest below one prefix of the store.

A folder never changes once servers read it, so the URI that a pod was started with says which bytes it serves.
Triton's form of an S3 address (github.com/triton-inference-server/server, docs/user_guide/model_repository.md) is
`s3://bucket/path` for AWS and `s3://https://host:port/bucket/path` for anything else, where the port is needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from shipctl.errors import SpecError
from shipctl.spec.models import StoreSpec
from shipctl.stages.artifacts import TritonRepository
from shipctl.store.depot import REPOSITORIES
from shipctl.store.objects import unheard

if TYPE_CHECKING:
    from shipctl.store.depot import Depot, Transferred
    from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions

_TRITON_S3 = re.compile(
    r"s3://((https?://)?[0-9a-zA-Z\-.]+:[0-9]+/)?[0-9a-z][0-9a-z.\-]*((/[0-9a-zA-Z.\-_]+)*)"
)
_PORTS = {"http": 80, "https": 443}


def base_uri(options: KubernetesOptions, store: StoreSpec | None) -> str:
    """Return the URI, as Triton reads it, below which repositories lie by digest.

    :raises SpecError: if servers in a cluster cannot read the spec's store
    """
    if options.modelRepository is not None:
        return options.modelRepository.rstrip("/")
    if store is None or not store.uri.startswith("s3://"):
        what = f"the store {store.uri} is" if store is not None else "without `store:` models are"
        message = (
            f"{what} on this machine, where servers in a cluster cannot read: write `store: {{uri: s3://bucket/prefix}}`"
            ", or say with `modelRepository` of the target under which URI they see it"
        )
        raise SpecError(message)
    found = triton_s3(store.uri, options.storeEndpoint or store.endpoint or _default_endpoint())
    return f"{found}/{REPOSITORIES.rstrip('/')}"


def triton_s3(uri: str, endpoint: str | None) -> str:
    """Return ``s3://bucket/prefix`` at ``endpoint`` (None: AWS) as Triton takes it.

    :raises SpecError: if Triton cannot take it
    """
    place = uri.removeprefix("s3://").strip("/")
    host = ""
    if endpoint is not None:
        url = urlsplit(endpoint)
        if url.scheme not in _PORTS or not url.hostname:
            message = f"storeEndpoint {endpoint!r} is not http(s)://host:port; correct it"
            raise SpecError(message)
        host = f"{url.scheme}://{url.hostname}:{url.port or _PORTS[url.scheme]}/"
    found = f"s3://{host}{place}"
    if not _TRITON_S3.fullmatch(found):
        message = (
            f"Triton cannot read {found}: its S3 addresses may have letters, digits, dots, - and _ only; rename the "
            "bucket or the prefix, or set `modelRepository` of the target"
        )
        raise SpecError(message)
    return found


def lay_out(
    depot: Depot, repository: TritonRepository, *, moved: Callable[[int], None] = unheard
) -> Transferred:
    """Put a repository into the store under its own names, below its digest, if it is not there.

    Its manifest is published as well: while a target serves it, a collection then keeps it.

    :raises StoreError: if the store cannot be reached
    :raises CorruptArtifactError: if the files are not those of the artifact
    """
    local = depot.local
    for entry in repository.files:
        if not local.has_files([entry]):
            local.put(Path(repository.root) / entry.path, sha256=entry.sha256)
    depot.publish(repository, moved=moved)
    return depot.lay_out(repository.digest, {entry.path: entry for entry in repository.files}, moved=moved)


def version_number(repository: TritonRepository) -> int:
    """Return the largest version number in a repository, which is the one that Triton serves."""
    numbers = [
        int(parts[1])
        for parts in (file.path.split("/") for file in repository.files)
        if len(parts) > 2 and parts[1].isdigit()  # noqa: PLR2004  (model/version/file)
    ]
    return max(numbers, default=1)


def _default_endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
