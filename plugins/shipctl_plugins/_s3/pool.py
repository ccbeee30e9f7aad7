"""urllib3's connection pool, in which an answer that is not a success is an exception that says all it can.

The minio client takes such a pool as its `http_client`. It would otherwise keep the status of some failures to itself
and lose what the server asked for (Retry-After, the region, the time).

This module imports urllib3, which comes with the minio client: import it where that is there.
"""

from __future__ import annotations

from typing import Any

import urllib3
from urllib3.util import Timeout

from shipctl_plugins._s3.faults import AnswerError, answered

_LONGEST_ERROR = 1 << 16


class _Checked:
    """What both kinds of pool do."""

    def urlopen(self, method: str, url: str, **options: Any) -> urllib3.BaseHTTPResponse:
        """Make one request, without following redirects or trying again.

        :raises AnswerError: unless the answer's status is 2xx
        """
        options |= {"redirect": False, "retries": False}
        response: urllib3.BaseHTTPResponse = super().urlopen(method, url, **options)  # type: ignore[misc]
        if 200 <= response.status < 300:  # noqa: PLR2004  (success)
            return response
        try:
            body = response.data if options.get("preload_content", True) else response.read(_LONGEST_ERROR)
        finally:
            response.drain_conn()
            response.release_conn()
        headers = {name.lower(): value for name, value in response.headers.items()}
        raise AnswerError(answered(response.status, headers, body[:_LONGEST_ERROR]))


class _Pool(_Checked, urllib3.PoolManager):  # type: ignore[misc]  # its urlopen has more ways to be called
    pass


class _ProxyPool(_Checked, urllib3.ProxyManager):  # type: ignore[misc]
    pass


def checked_pool(
    *, proxy: str | None, ca: str | None, connect: float, read: float, connections: int, block: int
) -> urllib3.PoolManager:
    """Return a pool that verifies certificates; times are seconds, ``block`` is bytes per write of a file."""
    import certifi

    options: dict[str, Any] = {
        "timeout": Timeout(connect=connect, read=read),
        "maxsize": connections,
        "blocksize": block,
        "cert_reqs": "CERT_REQUIRED",
        "ca_certs": ca or certifi.where(),
    }
    return _ProxyPool(proxy, **options) if proxy else _Pool(**options)
