"""A controller of another project, as far as tests play it: it looks at its object, and writes a status."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar, TypeVar, cast

from support_cluster import Kube

Document = dict[str, Any]
F = TypeVar("F", bound=Callable[..., Any])


class Controller:
    """What follows one object."""

    kind: ClassVar[str]

    def __init__(self, kube: Kube, namespace: str, name: str = "shop") -> None:
        self.kube, self.namespace, self.name = kube, namespace, name
        self._looking = False
        self._seen: Document | None = None

    def there(self) -> bool:
        """Whether its object is."""
        return self._find() is not None

    def live(self) -> Document:
        """Return its object."""
        found = self._find()
        assert found is not None, f"there is no {self.kind} {self.name}"
        return found

    @property
    def status(self) -> Document:
        """What it has written, as its object has it."""
        return dict(self.live().get("status") or {})

    def set_status(self, status: Document) -> bool:
        """Write a status, where it says anything new; None removes. Return whether it does."""
        if merged(self.status, status) == self.status:
            return False
        self._seen = self.kube.set_status(self.kind, self.name, self.namespace, status)
        return True

    def _find(self) -> Document | None:
        if self._seen is None:
            found = self.kube.find(self.kind, self.name, self.namespace)
            if not self._looking:
                return found
            self._seen = found
        return self._seen


def one_look(act: F) -> F:
    """Have a method of a controller look at its object once, and then know what it has written itself."""

    @wraps(act)
    def acting(self: Controller, *args: Any, **kwargs: Any) -> Any:
        if self._looking:
            return act(self, *args, **kwargs)
        self._looking = True
        try:
            return act(self, *args, **kwargs)
        finally:
            self._looking, self._seen = False, None

    return cast("F", acting)


def merged(document: Any, changes: Any) -> Any:
    """Return what a merge patch (RFC 7386) makes of a document."""
    if not isinstance(changes, dict):
        return changes
    found = dict(document) if isinstance(document, dict) else {}
    for name, change in changes.items():
        if change is None:
            found.pop(name, None)
        else:
            found[name] = merged(found.get(name), change)
    return found
