"""The way to one bucket: one pool of connections for the minio client and for what it cannot send.

The minio client (7.2) has no conditional put and no public call for a part, and over https it signs no payload. These
requests are signed by its own signer and go out over its own connections; so every byte that is sent is named by its
SHA-256 in a signed header (`x-amz-content-sha256`), which S3, MinIO and Ceph compare with what arrives.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from shipctl.errors import SpecError, UnavailableError
from shipctl.spec.models import StoreSpec
from shipctl_plugins._s3.credentials import Identity, identify
from shipctl_plugins._s3.slices import Slice

if TYPE_CHECKING:
    import minio
    from minio.credentials.credentials import Credentials
    from minio.credentials.providers import Provider
    from urllib3 import BaseHTTPResponse

_AWS = "s3.amazonaws.com"
_CONNECT, _READ, _COMPLETE = 10.0, 60.0, 300.0
"""Seconds without a sign of life; completing a large upload is silent work of the server."""
_CONNECTIONS = 64
_SEND = 1 << 18
"""Bytes that go from a file to the network at a time."""
_NAME = "shipctl"


class Connection:
    """Clients of one bucket, which share credentials, connections and trust. Safe for threads."""

    def __init__(self, spec: StoreSpec, base: Path, bucket: str) -> None:
        """Find credentials; nothing is sent unless they come from a role.

        :raises SpecError: if the endpoint or the CA file cannot be meant
        :raises UnavailableError: without the client libraries or credentials
        """
        _need_clients()
        endpoint = (
            spec.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        )
        self.bucket = bucket
        self.endpoint = endpoint or f"https://{_AWS}"
        self._given = endpoint
        self._host = host_of(self.endpoint)
        self._proxy = _proxy_for(self.endpoint)
        self._ca = _authority(spec.ca, base)
        self._profile = spec.profile
        self.region = (
            spec.region
            or os.environ.get("AWS_REGION")
            or os.environ.get("AWS_DEFAULT_REGION")
            or self._configured()
        )
        self.identity: Identity = identify(
            spec.uri, profile=spec.profile, role=spec.role, region=self.region, endpoint=endpoint, ca=self._ca
        )
        at_aws = self._host.split(":")[0].endswith((".amazonaws.com", ".amazonaws.com.cn"))
        self._virtual = spec.addressing == "virtual" or (spec.addressing == "auto" and at_aws)
        self._lock = threading.Lock()

    def _configured(self) -> str:
        from botocore.exceptions import ProfileNotFound
        from botocore.session import Session

        try:
            region: str | None = Session(profile=self._profile).get_config_variable("region")
        except ProfileNotFound:  # said by `identify` in full
            region = None
        return region or "us-east-1"

    @cached_property
    def pool(self) -> Any:
        """Connections that are kept open, with failures as :class:`AnswerError`."""
        from shipctl_plugins._s3.pool import checked_pool

        return checked_pool(
            proxy=self._proxy,
            ca=self._ca,
            connect=_CONNECT,
            read=_READ,
            connections=_CONNECTIONS,
            block=_SEND,
        )

    @cached_property
    def minio(self) -> minio.Minio:
        """The minio client."""
        import minio

        client = minio.Minio(
            self._host,
            secure=self.endpoint.startswith("https:"),
            region=self.region,
            credentials=cast("Provider", self.identity),
            http_client=self.pool,
        )
        style: Callable[[], None] = (
            client.enable_virtual_style_endpoint if self._virtual else client.disable_virtual_style_endpoint
        )
        style()
        return client

    @property
    def aws(self) -> Any:
        """The client of botocore, for multipart control calls only: it takes a quarter of a second to make."""
        with self._lock:
            return self._aws

    @cached_property
    def _aws(self) -> Any:
        from botocore.config import Config

        return self.identity.session.create_client(
            "s3",
            region_name=self.region,
            endpoint_url=self._given,
            verify=self._ca,
            config=Config(
                connect_timeout=_CONNECT,
                read_timeout=_COMPLETE,
                max_pool_connections=_CONNECTIONS,
                retries={"total_max_attempts": 1},  # ours, which knows when to stop
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                proxies={urlsplit(self.endpoint).scheme: self._proxy} if self._proxy else {},
                s3={"addressing_style": "virtual" if self._virtual else "path"},
                user_agent_extra=_NAME,
            ),
        )

    def put(
        self,
        key: str,
        body: bytes | Slice,
        *,
        size: int,
        sha256: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Send an object, or a part of one, and return its ETag. The server refuses bytes of another SHA-256 (hex).

        :raises AnswerError: for any other answer than success
        """
        from minio import time
        from minio.signer import sign_v4_s3

        url = self._base.build(
            method="PUT",
            region=self.region,
            bucket_name=self.bucket,
            object_name=key,
            query_params=dict(query or {}),
        )
        now = time.utcnow()
        credentials = self.identity.retrieve()
        signed: dict[str, Any] = {
            "Host": url.netloc,
            "Content-Length": str(size),
            "x-amz-content-sha256": sha256,
            "x-amz-date": time.to_amz_date(now),
            **(headers or {}),
        }
        if credentials.session_token:
            signed["x-amz-security-token"] = credentials.session_token
        signed = sign_v4_s3(
            method="PUT",
            url=url,
            region=self.region,
            headers=signed,
            credentials=cast("Credentials", credentials),
            content_sha256=sha256,
            date=now,
        )
        answer: BaseHTTPResponse = self.pool.urlopen(
            "PUT", urlunsplit(url), body=body, headers={**signed, "User-Agent": _NAME}
        )
        return answer.headers.get("etag", "").strip('"')

    @cached_property
    def _base(self) -> Any:
        from minio.helpers import BaseURL

        base = BaseURL(f"{urlsplit(self.endpoint).scheme}://{self._host}", self.region)
        base.virtual_style_flag = self._virtual
        return base

    def close(self) -> None:
        """Let go of connections."""
        if "pool" in self.__dict__:
            self.pool.clear()
        if "_aws" in self.__dict__:
            self._aws.close()


def host_of(endpoint: str) -> str:
    """Return ``host[:port]`` of an endpoint.

    :raises SpecError: if it is anything but `http(s)://host[:port]`
    """
    try:
        url = urlsplit(endpoint)
        port = url.port
    except ValueError as exc:
        message = f"endpoint {endpoint!r} is no address ({exc}); write http(s)://host:port"
        raise SpecError(message) from exc
    plain = url.path in {"", "/"} and not (url.query or url.fragment or url.username or url.password)
    if url.scheme not in {"http", "https"} or not url.hostname or not plain:
        shown = endpoint if "@" not in endpoint else endpoint.rpartition("@")[2]
        message = f"endpoint {shown!r} is not http(s)://host:port; credentials, paths and queries have no place in it"
        raise SpecError(message)
    default = {"http": 80, "https": 443}[url.scheme]
    name = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return name if port in {None, default} else f"{name}:{port}"


def _authority(given: str | None, base: Path) -> str | None:
    """Return the file with the certificate authorities to trust; None for those of certifi."""
    path = base / given if given else None
    if path is not None and not path.is_file():
        message = f"there is no file {path} with the certificate authority of the store; correct `ca:`"
        raise SpecError(message)
    return str(path) if path else os.environ.get("AWS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or None


def _proxy_for(endpoint: str) -> str | None:
    """Return the proxy that the environment names for an endpoint."""
    url = urlsplit(endpoint)
    host = url.hostname or ""
    if host in {"localhost", "127.0.0.1", "::1"} or proxy_bypass(host):
        return None
    return getproxies().get(url.scheme)


def _need_clients() -> None:
    try:
        import botocore.session
        import minio  # noqa: F401  (asked for, not used)
    except ImportError as exc:
        message = f"s3:// needs {exc.name}: pip install 'shipctl[s3]'"
        raise UnavailableError(message) from exc
    del botocore
