"""Routes by weight that are ours, as objects of an API that gateways or meshes follow.

Lists of rules are replaced as a whole by every way of writing (server-side apply knows no keys in them). So we own
all of a route, or change exactly the destinations of one rule of another's (:mod:`._kubernetes.foreign_rule`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl.records import digest_of
from shipctl.release.traffic import Traffic
from shipctl_plugins._kubernetes.api.errors import InvalidError
from shipctl_plugins._kubernetes.app import SHORT, Place
from shipctl_plugins._kubernetes.traffic.ways import (
    COMPARATOR,
    Asked,
    Json,
    Way,
    dropped,
    notes_of,
    own_or_absent,
)

if TYPE_CHECKING:
    from shipctl_plugins._kubernetes.api.connection import Ref


class Dialect(ABC):
    """How one kind of routes says what all of them say."""

    rules: str
    """The key of the rules in a spec."""
    destinations: str
    """The key of the destinations in a rule."""

    @abstractmethod
    def service(self, destination: Json, namespace: str) -> str | None:
        """Return the Service of ``namespace`` that a destination is; None if it is something else."""

    @abstractmethod
    def weight(self, destination: Json) -> int:
        """Return a destination's weight."""

    @abstractmethod
    def destination(self, service: str, port: int, weight: int) -> Json:
        """Return the destination of that Service."""

    @abstractmethod
    def told_apart(self, rule: Json) -> bool:
        """Whether a rule is for requests with certain headers only."""

    def weights(self, rule: Json, namespace: str) -> dict[str, int]:
        """Return the weights of a rule by Service; a destination that is no Service of ours stands for itself."""
        found: dict[str, int] = {}
        for one in rule.get(self.destinations) or ():
            name = self.service(one, namespace) or f"another destination ({digest_of(one)[:SHORT]})"
            if weight := self.weight(one):
                found[name] = found.get(name, 0) + weight
        return found

    def balanced(self, place: Place, weights: Mapping[str, int], port: int) -> list[Json]:
        """Return the destinations for these weights.

        Who gets nothing is not among them: a gateway that keeps sessions together would still send it theirs.
        """
        return [
            self.destination(place.app.of(name), port, weight) for name, weight in weights.items() if weight
        ]


def comparator_of(place: Place, asked: Asked) -> str:
    """Return the Service that gets copies."""
    named = asked.backends.get(COMPARATOR)
    return named[0].name if named else f"{place.app.name}-{COMPARATOR}"


class OwnRoute(Way):
    """A route that is ours as a whole; labels and annotations of others in it are left alone."""

    def __init__(
        self,
        place: Place,
        ref: Ref,
        dialect: Dialect,
        rules: Sequence[Callable[[Asked], list[Json]]],
        spec: Json,
    ) -> None:
        """``rules`` make the rules for what is asked, as different versions of the API want them.

        ``spec`` is what stands beside them.
        """
        super().__init__(place, ref)
        self.dialect = dialect
        self.rules = rules
        self.beside = spec

    def check(self) -> None:
        """Try, without doing it, to make it, or to change it: that shows rights, and whether the options are right."""
        super().check()
        manifest = self.manifest(Asked(traffic=Traffic()))
        self._try(manifest)
        if self.find() is not None:
            self.place.cluster.apply({**manifest, "spec": {}}, force=True, dry_run=True)

    def try_out(self, asked: Asked) -> None:
        """Look whether the cluster's kind has all the fields that take it to say that.

        :raises StageError: if not
        """
        if not _plain(asked.traffic):
            self._understood(self._manifests(asked))

    def weights(self, found: Json) -> list[dict[str, int]]:
        """Return the weights of each rule that tells no requests apart."""
        rules = (found.get("spec") or {}).get(self.dialect.rules) or ()
        return [
            self.dialect.weights(rule, self.place.app.namespace)
            for rule in rules
            if not self.dialect.told_apart(rule)
        ]

    def routes(self, found: Json, asked: Asked) -> bool:
        """Whether its rules are those that are asked for."""
        live = (found.get("spec") or {}).get(self.dialect.rules)
        return any(dropped(live, rules(asked)) is None for rules in self.rules)

    def follows(self, found: Json, asked: Asked) -> bool:
        """Whether all of it is."""
        return any(dropped(found.get("spec"), one["spec"]) is None for one in self._manifests(asked))

    def mark(self, found: Json) -> Any:
        return found.get("spec")

    def manifest(self, asked: Asked) -> Json:
        """Return the object as it is made."""
        return self._manifests(asked)[0]

    def _manifests(self, asked: Asked) -> list[Json]:
        """Return it for each version of the API that wants another one."""
        found: list[Json] = []
        for rules in self.rules:
            spec = {**self.beside, self.dialect.rules: rules(asked)}
            made = self.place.labelled(self.ref.kind, self.ref.api_version, self.ref.name, spec=spec)
            if made not in found:
                found.append(made)
        return found

    def write(self, found: Json | None, asked: Asked, notes: dict[str, str | None]) -> None:
        """Have it be what is asked."""
        manifest = self.manifest(asked)
        if not _plain(asked.traffic):
            # a condition that gets lost would let every request through
            manifest = self._understood(self._manifests(asked))
        if found is None:
            manifest["metadata"]["annotations"] = _written(notes)
            self.place.cluster.create(manifest)
            return
        metadata = found["metadata"]
        labels = {**(metadata.get("labels") or {}), **manifest["metadata"]["labels"]}
        annotations = _written({**notes_of(found), **notes})
        new = {**found, "metadata": {**metadata, "labels": labels, "annotations": annotations}}
        self.place.cluster.replace({**new, "spec": manifest["spec"]})

    def remove(self) -> str | None:
        """Delete it, and say so; None if there is none of ours."""
        found = self.find()
        if found is None:
            return None
        own_or_absent(self, found)
        self.place.cluster.delete(self.ref, uid=found["metadata"]["uid"])
        return f"{self} was deleted"

    def _understood(self, manifests: list[Json]) -> Json:
        """Return the first of them that the API server would keep all of.

        :raises StageError: if there is none
        """
        for manifest in manifests[:-1]:
            with suppress(StageError):
                self._try(manifest)
                return manifest
        self._try(manifests[-1])
        return manifests[-1]

    def _try(self, manifest: Json) -> None:
        """Ask what the API server would keep of it: fields that it does not know, it drops without a word."""
        advice = (
            "update what brings the kind (sessionPersistence is in the experimental channel of the Gateway API), or "
            "choose another router"
        )
        try:
            kept = self.place.cluster.create(
                {**manifest, "metadata": {**manifest["metadata"], "name": f"{self.ref.name}-dry-run"}},
                dry_run=True,
            )
        except InvalidError as exc:
            raise StageError(f"{self} cannot be made so: {exc}; {advice}") from exc
        lost = dropped(kept.get("spec"), manifest["spec"], "spec")
        if lost is not None:
            raise StageError(
                f"{self} cannot be made so: the cluster's {self.ref.kind} has no {lost}; {advice}"
            )


def _written(notes: Mapping[str, str | None]) -> dict[str, str]:
    return {name: text for name, text in notes.items() if text is not None}


def _plain(traffic: Traffic) -> bool:
    """Whether it is weights and nothing else, which every version of an API knows."""
    return traffic == Traffic(weights=traffic.weights, fallback=traffic.fallback)
