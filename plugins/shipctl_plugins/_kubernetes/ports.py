"""A port of somebody else's in a Service of ours, under a name that a port of ours is to have.

Entries of `spec.ports` are told apart by number and protocol, and so are their owners; their names have to differ all
the same. Ours that somebody has given another number is therefore two entries of one name to an API server that
applies it, which is an invalid object and no conflict to it.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from shipctl_plugins._kubernetes.app import FIELD_MANAGER

Object = dict[str, Any]


class Taken(NamedTuple):
    """A name that is taken."""

    name: str
    port: int
    """The number that it is taken by."""
    managers: tuple[str, ...]
    """Whose that entry is."""

    @property
    def field(self) -> str:
        """Where that stands, as in a message of the API server's."""
        return f".spec.ports[port={self.port}].name"


def taken(manifest: Object, live: Object | None) -> list[Taken]:
    """Return the ports of a live Service that keep those of ``manifest`` from having their names."""
    if manifest["kind"] != "Service" or live is None:
        return []
    ours = {each.get("name"): _key(each) for each in manifest["spec"].get("ports") or ()}
    return [
        Taken(each["name"], each["port"], _owners(live, each))
        for each in live["spec"].get("ports") or ()
        if each.get("name") in ours and ours[each["name"]] != _key(each)
    ]


def _key(port: Object) -> tuple[Any, Any]:
    return port.get("port"), port.get("protocol", "TCP")


def _owners(live: Object, port: Object) -> tuple[str, ...]:
    number, protocol = _key(port)
    entry = "k:" + json.dumps({"port": number, "protocol": protocol}, separators=(",", ":"))
    found = [
        str(each.get("manager") or "somebody else")
        for each in live["metadata"].get("managedFields") or ()
        if entry in (each.get("fieldsV1") or {}).get("f:spec", {}).get("f:ports", {})
    ]
    return tuple(dict.fromkeys(name for name in found if name != FIELD_MANAGER))
