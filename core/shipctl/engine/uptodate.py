"""The quickest answer to "is there anything to do?": nothing that the last apply looked at has changed since.

An apply that found everything done remembers its command line and the state (size, times, inode) of every
file and folder that its answer came from: spec, sources, data, templates, results, blobs, shipctl's own
modules and the folders that Python imports from. As long as all of it is the same, the same command is
answered from that, before anything heavy is imported. Whatever has moved, or cannot be known this way (a
release asks its target, a hook wants to be told), takes the ordinary way.

This module imports nothing but what Python has loaded anyway, or nearly so.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time

MESSAGE = "nothing to do"
_SETTLED_NS = 2_000_000_000
"""A file that changed within the last two seconds may change again within the same tick of its clock."""
_WATCHED = ("PYTHONPATH", "PYTHONHOME", "SHIPCTL_LABELS", "SHIPCTL_CACHE_DIR")

Stamp = list[int] | None


def stamp(path: str) -> Stamp:
    """Return size, modification and change time and inode of a file or folder; None if it is not there."""
    try:
        status = os.stat(path)  # noqa: PTH116  (pathlib is not loaded yet)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _environment(names: list[str]) -> dict[str, str | None]:
    """Return digests of environment variables: their values may be nobody's business."""
    found: dict[str, str | None] = {}
    for name in sorted({*names, *_WATCHED}):
        value = os.environ.get(name)
        found[name] = (
            None if value is None else hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest()
        )
    return found


def _place(state: str, arguments: list[str]) -> str:
    key = json.dumps([sys.executable, sys.version, os.getcwd(), arguments])  # noqa: PTH109  (see above)
    return os.path.join(state, "uptodate", hashlib.sha256(key.encode()).hexdigest()[:32])  # noqa: PTH118


def _state_folder(file: str) -> str | None:
    """Return the nearest `.shipctl` above a file: the same one that the project of a spec has, if it has one."""
    here = os.path.dirname(os.path.realpath(file))  # noqa: PTH120  (see above)
    while True:
        if os.path.isdir(os.path.join(here, ".shipctl")):  # noqa: PTH112, PTH118
            return os.path.join(here, ".shipctl")  # noqa: PTH118
        parent = os.path.dirname(here)  # noqa: PTH120
        if parent == here:
            return None
        here = parent


def is_up_to_date(arguments: list[str]) -> bool:
    """Whether a command line was answered before with nothing to do, and nothing has changed since.

    ``arguments`` is ``sys.argv[1:]``. Anything unexpected means no: the ordinary way then finds out.
    """
    try:
        for argument in arguments[1:]:
            state = _state_folder(argument) if argument.endswith((".yaml", ".yml")) else None
            if state is None:
                continue
            with open(_place(state, arguments), encoding="utf-8") as stream:  # noqa: PTH123  (see above)
                known = json.load(stream)
            return (
                known["expires"] > time.time()
                and _environment(known["names"]) == known["environment"]
                and all(stamp(path) == then for path, then in known["stamps"].items())
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return False


def remember(
    state: str,
    arguments: list[str],
    sources: list[str],
    stored: list[str],
    names: list[str],
    expires: float,
    began: int,
) -> bool:
    """Remember that a command line found nothing to do, and return whether that could be remembered.

    ``sources`` are files that a person may edit, ``stored`` those of the store, ``names`` the environment
    variables that count, ``expires`` the time (seconds since the epoch) when a measurement becomes too old, and
    ``began`` when the sources began to be read (nanoseconds since the epoch): what changed later was not seen.
    """
    stamps: dict[str, Stamp] = {}
    for path in sources:
        found = stamp(path)
        if found is None or began - max(found[1], found[2]) < _SETTLED_NS:
            return False
        stamps[path] = found
    folders = {os.path.dirname(path) for path in sources} | {path for path in sys.path if path}  # noqa: PTH120
    for path in (*_modules(), *stored, *sorted(folders)):
        stamps[path] = stamp(path)
    place = _place(state, arguments)
    os.makedirs(os.path.dirname(place), exist_ok=True)  # noqa: PTH103, PTH120
    body = {"expires": expires, "names": names, "environment": _environment(names), "stamps": stamps}
    twin = f"{place}.{os.getpid()}.tmp"
    with open(twin, "w", encoding="utf-8") as stream:  # noqa: PTH123
        json.dump(body, stream)
    os.replace(twin, place)  # noqa: PTH105
    return True


def _modules() -> list[str]:
    """Return the files of all loaded modules that are not of the standard library."""
    standard = os.path.dirname(os.__file__)  # noqa: PTH120
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return sorted(
        {str(f) for f in files if f and (not str(f).startswith(standard) or "site-packages" in str(f))}
    )
