"""One rule of a route that somebody else looks after: only the destinations in it that are ours are changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl.records import digest_of
from shipctl_plugins._kubernetes.app import FIELD_MANAGER, SHORT, Place
from shipctl_plugins._kubernetes.traffic.routes import Dialect
from shipctl_plugins._kubernetes.traffic.ways import Asked, Json, Way, dropped, notes_of

if TYPE_CHECKING:
    from shipctl_plugins._kubernetes.api.connection import Ref

ANNOTATION_RULE = "shipctl.dev/rule"
"""Names the rule of another's route in which we are, while there is nothing of ours in it."""


class ForeignRule(Way):
    """Our destinations in one rule of a route that somebody else looks after."""

    own = False

    def __init__(self, place: Place, ref: Ref, dialect: Dialect, rule: str | None, port: int) -> None:
        """``rule`` is its name in the route; None for the one that has destinations of ours, or the only one."""
        super().__init__(place, ref)
        self.dialect = dialect
        self.rule = rule
        self.port = port

    def find(self) -> Json:
        """Return the live object.

        :raises StageError: if it is not there: we do not make it
        """
        found = self.place.cluster.get(self.ref)
        if found is None:
            message = (
                f"there is no {self} in namespace {self.place.app.namespace}, in which traffic is to be moved"
            )
            raise StageError(f"{message}; make it, or leave the option out")
        return found

    def index(self, found: Json) -> int:
        """Return which rule is meant.

        :raises StageError: if that cannot be said
        """
        rules = self._rules(found)
        if self.rule is not None:
            meant = [index for index, rule in enumerate(rules) if rule.get("name") == self.rule]
            what = f"no rule named {self.rule!r}" if not meant else f"{len(meant)} rules named {self.rule!r}"
        else:
            noted = notes_of(found).get(ANNOTATION_RULE)
            ours = [index for index, rule in enumerate(rules) if any(map(self._is_ours, self._list(rule)))]
            left = [index for index, rule in enumerate(rules) if noted == self._identity(rule)]
            meant = ours or left or (list(range(len(rules))) if len(rules) == 1 else [])
            what = f"{len(meant)} rules with" if meant else "no rule with"
            what += f" a destination that is the Service {self.place.app.name}, or one of its revisions"
        if len(meant) != 1:
            message = f"{self} has {what}; have exactly one, or name it by the option `rule`"
            raise StageError(message)
        return meant[0]

    def check(self) -> None:
        """Look whether the rule is there, and is the model's alone.

        :raises StageError: if not
        """
        self._alone(self._meant(self.find()))

    def weights(self, found: Json) -> list[dict[str, int]]:
        """Return the weights of the rule, those of others' destinations included."""
        app = self.place.app
        found_weights = self.dialect.weights(self._meant(found), app.namespace)
        return [{name: weight for name, weight in found_weights.items() if name != app.name}]

    def routes(self, found: Json, asked: Asked) -> bool:
        rule = self._meant(found)
        wanted = self.dialect.balanced(self.place, asked.traffic.weights, self._port(rule))
        ours = [one for one in self._list(rule) if self._is_ours(one)]
        return dropped(ours, wanted) is None and not self._others(rule)

    def mark(self, found: Json) -> Any:
        return self._list(self._meant(found))

    def write(self, found: Json | None, asked: Asked, notes: dict[str, str | None]) -> None:
        """Have the rule's destinations of ours be these; everything else stays as it was read."""
        found = found or self.find()
        index = self.index(found)
        rule = self._rules(found)[index]
        self._alone(rule)
        wanted = self.dialect.balanced(self.place, asked.traffic.weights, self._port(rule))
        kept = [one for one in self._list(rule) if not self._is_ours(one)]
        where = f"/spec/{self.dialect.rules}/{index}"
        self._patch(
            found,
            [
                {"op": "test", "path": where, "value": rule},
                {"op": "add", "path": f"{where}/{self.dialect.destinations}", "value": [*wanted, *kept]},
            ],
            {**notes, ANNOTATION_RULE: self._identity(rule)},
        )

    def leave(self) -> str | None:
        """Take our destinations and notes out of it, and say so; None if there are none."""
        found = self.place.cluster.get(self.ref)
        if found is None or ANNOTATION_RULE not in notes_of(found):
            return None
        index = self.index(found)
        rule = self._rules(found)[index]
        where = f"/spec/{self.dialect.rules}/{index}"
        kept = [one for one in self._list(rule) if not self._is_ours(one)]
        changes: list[Json] = [
            {"op": "test", "path": where, "value": rule},
            {"op": "add", "path": f"{where}/{self.dialect.destinations}", "value": kept},
        ]
        ours = [name for name in notes_of(found) if name.startswith(f"{FIELD_MANAGER}.dev/")]
        self._patch(found, changes, dict.fromkeys(ours))
        return f"{self}: the destinations of {self.place.app.name} were taken out"

    # -- helpers --------------------------------------------------------------------------------------------

    def _alone(self, rule: Json) -> None:
        """Refuse a rule in which weights would not be shares of the model's requests."""
        if others := self._others(rule):
            message = (
                f"the rule of {self} also sends requests to {', '.join(others)}, so weights in it would not be shares "
                "of the model's requests; give the model a rule of its own"
            )
            raise StageError(message)

    def _patch(self, found: Json, changes: list[Json], notes: Mapping[str, str | None]) -> None:
        """Change the rule as it was read, and notes about it, at once."""
        version = found["metadata"]["resourceVersion"]
        before = notes_of(found)
        patch = list(changes)
        if not before:
            patch.append({"op": "add", "path": "/metadata/annotations", "value": {}})
        for name, text in notes.items():
            path = f"/metadata/annotations/{name.replace('~', '~0').replace('/', '~1')}"
            if text is not None:
                patch.append({"op": "add", "path": path, "value": text})
            elif name in before:
                patch.append({"op": "remove", "path": path})
        self.place.cluster.patch(self.ref, patch, kind="json", resource_version=version)

    def _rules(self, found: Json) -> list[Json]:
        return list((found.get("spec") or {}).get(self.dialect.rules) or ())

    def _meant(self, found: Json) -> Json:
        return self._rules(found)[self.index(found)]

    def _list(self, rule: Json) -> list[Json]:
        return list(rule.get(self.dialect.destinations) or ())

    def _is_ours(self, destination: Json) -> bool:
        app = self.place.app
        name = self.dialect.service(destination, app.namespace)
        if name is None or not name.startswith(app.name):
            return False
        rest = name[len(app.name) :]
        return not rest or (
            len(rest) == SHORT + 1 and rest[0] == "-" and set(rest[1:]) <= set("0123456789abcdef")
        )

    def _others(self, rule: Json) -> list[str]:
        """Return the destinations in a rule that are not ours and get requests."""
        found = [one for one in self._list(rule) if not self._is_ours(one) and self.dialect.weight(one)]
        namespace = self.place.app.namespace
        return [self.dialect.service(one, namespace) or str(one) for one in found]

    def _port(self, rule: Json) -> int:
        """Return the port at which destinations of ours are reached in this rule: as it is there, or HTTP's."""
        ports = [
            one.get("port") or (one.get("destination") or {}).get("port", {}).get("number")
            for one in self._list(rule)
            if self._is_ours(one)
        ]
        return int(next((port for port in ports if port), self.port))

    def _identity(self, rule: Json) -> str:
        return digest_of({key: value for key, value in rule.items() if key != self.dialect.destinations})[
            :SHORT
        ]
