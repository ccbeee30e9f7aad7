"""Whether a live object is what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SERVERS = frozenset({"resourceVersion", "managedFields", "uid", "generation", "creationTimestamp"})
"""Of the metadata, what the server writes."""


def covers(live: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether all that is in ``wanted`` is so in ``live``; null stands for a field that is not there."""
    metadata = {key: value for key, value in wanted.get("metadata", {}).items() if key not in _SERVERS}
    return _covers(live, {**wanted, "metadata": metadata})


def _covers(live: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(live, Mapping) and all(_covers(live.get(key), each) for key, each in wanted.items())
    if isinstance(wanted, list):
        same = isinstance(live, list) and len(live) == len(wanted)
        return same and all(map(_covers, live, wanted))
    return bool(live == wanted)
