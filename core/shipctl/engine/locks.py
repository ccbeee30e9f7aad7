"""The lock of a project: one apply at a time, and the next one is told who holds it and since when."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shipctl.errors import LockedError
from shipctl.store.log import Actor

_POLL = 0.1
_RELEASING = ("apply", "promote", "rollback")


@contextmanager
def project_lock(path: Path, command: str, timeout: float) -> Iterator[None]:
    """Hold the lock, waiting up to ``timeout`` seconds for it.

    The kernel lets go of it when the process dies, however it dies (flock(2)), so there are no stale locks.

    :raises LockedError: naming the owner, if it is not free by then
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    held = _owner(path)
                    message = f"{held}; wait for it with `--lock-timeout 10m`"
                    if any(f"`shipctl {name} " in held for name in _RELEASING):
                        message += ", or end the release that it drives with `shipctl abort`"
                    raise LockedError(message) from None
                time.sleep(_POLL)
        owner = {
            "user": Actor.current().user,
            "host": platform.node(),
            "pid": os.getpid(),
            "command": command,
            "since": time.time(),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _owner(path: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        owner = json.loads(path.read_bytes())
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner["since"]))
        return f"locked by {owner['user']}@{owner['host']} (process {owner['pid']}, `{owner['command']}`) since {since}"
    return f"locked by another process ({path})"
