"""What is wrong with manifests, before a cluster has seen them.

Three looks: the schemas of a version of Kubernetes (kubernetes-validate, where it is installed), the rules of single
fields that schemas do not have (:mod:`.lint_fields`, :mod:`.lint_pods`), and whether objects fit together
(:mod:`.lint_references`). What is allowed but unwise is another question: :mod:`.lint_practice`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from shipctl_plugins._kubernetes.lint.fields import field_problems
from shipctl_plugins._kubernetes.lint.pods import pod_problems
from shipctl_plugins._kubernetes.lint.references import reference_problems
from shipctl_plugins._kubernetes.manifests.documents import Manifest


def problems(
    objects: Sequence[Manifest], version: str | None = None, *, elsewhere: Collection[str] = ()
) -> list[str]:
    """Return what is wrong, a line each; empty where a cluster of that version takes the objects and they fit.

    ``objects`` is everything of an app at once, since one refers to another. ``version`` such as `1.34` says whose
    schemas are asked; None asks none. ``elsewhere`` names what is there already, such as `ServiceAccount/models`.
    """
    found = [line for one in objects for line in _single(one, version)]
    return [*found, *reference_problems(objects, elsewhere)]


def _single(one: Manifest, version: str | None) -> Iterator[str]:
    name = f"{one.get('kind')} {(one.get('metadata') or {}).get('name')}"
    schema = list(schema_problems(one, version)) if version else []
    if schema:  # what is of another shape than it should be cannot be looked into
        yield from (f"{name}: {line}" for line in schema)
        return
    yield from (f"{name}: {line}" for line in (*field_problems(one), *pod_problems(one)))


def schema_problems(one: Manifest, version: str) -> Iterable[str]:
    """Return what the schema says of an object; nothing for kinds that Kubernetes does not bring itself.

    For a version newer than the newest known schemas those are asked, for one older than the oldest none.
    """
    try:
        import kubernetes_validate as schemas
    except ImportError:
        return []
    wanted = _nearest(version, schemas.utils.all_versions())
    if wanted is None:
        return []
    try:
        schemas.validate(one, wanted, strict=True)
    except schemas.SchemaNotFoundError:
        return []
    except schemas.ValidationError as exc:
        return [_said(exc)]
    return []


def schema_versions() -> list[str]:
    """Return the versions whose schemas are installed, the oldest first; none without kubernetes-validate."""
    try:
        import kubernetes_validate as schemas
    except ImportError:
        return []
    return sorted({_minor(version) for version in schemas.utils.all_versions()}, key=_number)


def _nearest(version: str, known: Iterable[str]) -> str | None:
    fitting = [one for one in {_minor(item) for item in known} if _number(one) <= _number(_minor(version))]
    return max(fitting, key=_number) if fitting else None


def _minor(version: str) -> str:
    return ".".join(version.lstrip("v").split(".")[:2])


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _said(exc: Any) -> str:
    path = ".".join(str(part) for part in exc.path) or "the object"
    return f"{path}: {exc.message.splitlines()[0][:200]}"
