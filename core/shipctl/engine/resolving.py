"""What requirements come to: a lock, the exact versions of everything that an environment will hold.

pip resolves them once per machine (which asks the package index), and the answer is kept in the user's cache. So an
environment is what its lock says, whenever it is made, and a result can say by which versions it came about.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from shipctl.engine.environments import cache_home, ensure_environment, environment_key, probe
from shipctl.errors import StageError, UnavailableError
from shipctl.records import Record
from shipctl.store.files import write_atomic

_LONGEST = 600.0
"""Seconds that pip may take."""


class Lock(Record):
    """The distributions of an environment."""

    asked: tuple[str, ...]
    """Requirements (PEP 508), sorted."""
    pins: tuple[str, ...]
    """`name==version`, or `name @ url` for what is no index's, sorted; everything that the requirements need."""


def lock_of(requirements: Sequence[str], progress: Callable[[str], None] = lambda _: None) -> Lock:
    """Return the lock of ``requirements`` for the running interpreter, resolving them where nobody has yet.

    :raises UnavailableError: if they contradict each other, or the package index cannot be asked
    """
    asked = tuple(sorted(requirements))
    path = _place(asked)
    try:
        return Lock.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        pass
    found = Lock(asked=asked, pins=_resolved(asked, progress))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, found.model_dump_json(indent=1).encode() + b"\n")
    return found


def _place(asked: Sequence[str]) -> Path:
    interpreter = probe(Path(sys.executable))
    if interpreter is None:
        message = (
            f"{sys.executable} cannot make virtual environments: install its venv and ensurepip modules "
            "(on Debian and Ubuntu the package python3-venv)"
        )
        raise UnavailableError(message)
    return cache_home() / "locks" / f"{environment_key(asked, interpreter)}.json"


def _resolved(asked: Sequence[str], progress: Callable[[str], None]) -> tuple[str, ...]:
    progress(f"resolving {', '.join(asked)} (once)")
    try:
        # shipctl's own environment need not have pip
        python = ensure_environment("resolver", [], progress=progress).python
    except StageError as exc:
        raise UnavailableError(str(exc)) from exc
    command = [
        str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet", "--dry-run",
        "--ignore-installed", "--report", "-", *asked,
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_LONGEST)
        items = json.loads(done.stdout)["install"]
    except subprocess.CalledProcessError as exc:
        message = f"pip cannot resolve {', '.join(asked)}: {_reason(exc.stderr)}"
        raise UnavailableError(message) from exc
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as exc:
        message = f"pip cannot resolve {', '.join(asked)}: {type(exc).__name__}"
        raise UnavailableError(message) from exc
    return tuple(sorted(_pin(item) for item in items))


def _pin(item: dict[str, object]) -> str:
    metadata, source = item["metadata"], item["download_info"]
    assert isinstance(metadata, dict)  # noqa: S101  (pip's installation report, version 1)
    assert isinstance(source, dict)  # noqa: S101
    name = str(metadata["name"]).lower()
    return f"{name} @ {source['url']}" if item.get("is_direct") else f"{name}=={metadata['version']}"


def _reason(stderr: str) -> str:
    """Return what pip says is wrong, in one line."""
    errors = [
        line.removeprefix("ERROR:").strip() for line in stderr.splitlines() if line.startswith("ERROR:")
    ]
    return "; ".join(errors) or stderr.strip().rpartition("\n")[2] or "it does not say why"
