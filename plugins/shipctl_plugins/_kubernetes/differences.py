"""What an apply would change on live objects: asked of the API server itself, by a dry run of the same call."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from shipctl_plugins._kubernetes.api.connection import FieldConflictError, MissingError, Ref
from shipctl_plugins._kubernetes.api.same import covers
from shipctl_plugins._kubernetes.app import Place
from shipctl_plugins._kubernetes.manifests.documents import yaml_of
from shipctl_plugins._kubernetes.objects import apply, named, reference

Object = dict[str, Any]

_NOISE = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink")
"""What the server writes into the metadata of everything."""
_FEW = 5
"""Fields of a change that are named; the rest is counted."""


def unified(place: Place, manifests: list[Object]) -> list[str]:
    """Return a unified diff of the live objects against what they would be, as `kubectl diff` has it.

    :raises ShipctlError: if the cluster cannot be asked
    """
    lines: list[str] = []
    for manifest in manifests:
        name = f"{manifest['apiVersion'].replace('/', '.')}.{manifest['kind']}.{place.app.namespace}.{_name(manifest)}"
        try:
            before, after = _both(place, manifest)
        except FieldConflictError as exc:
            lines += [f"# {exc}"]
            continue
        if before == after:
            continue
        lines += difflib.unified_diff(
            _text(before), _text(after), f"live/{name}", f"after/{name}", lineterm=""
        )
    return lines


def summary(place: Place, manifests: list[Object]) -> list[str]:
    """Say, a line each, which objects would be created, and which changed in what.

    :raises ShipctlError: if the cluster cannot be asked
    """
    lines = []
    for manifest in manifests:
        try:
            before, after = _both(place, manifest)
        except FieldConflictError as exc:
            lines.append(str(exc))
            continue
        if before is None and after is not None:
            lines.append(f"create {named(manifest)}")
        elif before is not None and before != after:
            paths = list(changed(before, after or {}))
            more = f" and {len(paths) - _FEW} more" if len(paths) > _FEW else ""
            lines.append(f"change {named(manifest)}: {', '.join(paths[:_FEW])}{more}")
    return lines


def changed(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Yield the paths, such as `.spec.replicas`, of what differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}, key=str):
            yield from changed(before.get(key), after.get(key), f"{path}.{key}")
    elif before != after:
        yield path or "."


def _both(place: Place, manifest: Object) -> tuple[Object | None, Object | None]:
    live = place.cluster.get(reference(manifest)) if _served(place, manifest) else None
    try:
        after = apply(place, manifest, lambda _line: None, dry_run=True)
    except MissingError:
        if not _waits(place, manifest):
            raise
        after = live if live is not None and covers(live, manifest) else manifest
    return (None if live is None else _plain(live)), (None if after is None else _plain(after))


def _waits(place: Place, manifest: Object) -> bool:
    """Whether it binds a Role that is not there yet.

    The API server compares that Role's rights with ours before it lets us bind it, and a dry run of the Role has left
    none; a release makes the Role first.
    """
    if manifest["kind"] != "RoleBinding":
        return False
    role = manifest["roleRef"]
    return place.cluster.get(Ref(manifest["apiVersion"], role["kind"], role["name"])) is None


def _served(place: Place, manifest: Object) -> bool:
    return place.cluster.has(manifest["apiVersion"], manifest["kind"])


def _plain(found: Object) -> Object:
    """Return an object without what the server adds, and without what nobody is to read."""
    metadata = {key: value for key, value in found["metadata"].items() if key not in _NOISE}
    plain = {key: value for key, value in found.items() if key not in {"status", "metadata"}}
    plain["metadata"] = metadata
    if found["kind"] == "Secret":
        for part in ("data", "stringData"):
            plain[part] = dict.fromkeys(found.get(part) or {}, "***")
    return plain


def _text(found: Object | None) -> list[str]:
    return [] if found is None else yaml_of([found]).splitlines()


def _name(manifest: Object) -> str:
    return str(manifest["metadata"]["name"])
