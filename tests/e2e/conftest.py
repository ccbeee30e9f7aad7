"""The S3 servers, one of each for all tests of a session."""

from __future__ import annotations

from support_s3_servers import authority, moto, rgw

__all__ = ["authority", "moto", "rgw"]
