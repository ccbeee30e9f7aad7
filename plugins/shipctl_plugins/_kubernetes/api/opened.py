"""Connections of this process, kept: a command opens its targets many times, and a login program may run each time."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from shipctl_plugins._kubernetes.api.connection import Access, Cluster, connect

_KEPT = 8


class _Told:
    """Whoever opened the connection last hears what it has to say."""

    def __init__(self) -> None:
        self.log: Callable[[str], None] = print

    def __call__(self, line: str) -> None:
        self.log(line)


def opened(access: Access, base: Path, log: Callable[[str], None]) -> Cluster:
    """Return the cluster that ``access`` means, connected to once per process.

    :raises UnavailableError: as :func:`shipctl_plugins._kubernetes.api.connection.connect`
    """
    plain = Access.model_validate({name: getattr(access, name) for name in Access.model_fields})
    cluster, told = _opened(plain.model_dump_json(), base.absolute(), os.environ.get("KUBECONFIG"))
    told.log = log
    return cluster


@lru_cache(maxsize=_KEPT)
def _opened(access: str, base: Path, _kubeconfig: str | None) -> tuple[Cluster, _Told]:
    told = _Told()
    return connect(Access.model_validate_json(access), base, told), told
