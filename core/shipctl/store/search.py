"""Searches over registered versions.

A query is words with blanks between them, all of which have to hold (quotes keep blanks together):

    mnist               in the name, version, description, owner, stage, an alias, a tag or a label
    name:dig*           the field is that, with * and ? as in file names; also version, stage, alias, owner, license,
                        by (who registered it), parent, digest, spec and run (as in its lineage), data (name or
                        digest of a data set)
    tag:team            there is such a tag (of the version or its model); tag:team=vision also has that value
    label:tier=gold     the same for labels of the spec
    is:retired          retired versions, which are left out otherwise; also is:prerelease, is:aliased
    accuracy>=0.97      a metric, with >= <= > < = !=, in base units or with a unit: latency.p95<20ms, accuracy>97%

A metric that a version does not have, or that is not a finite number, never holds.
"""

from __future__ import annotations

import math
import operator
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from shipctl.errors import SpecError
from shipctl.spec.problems import listed, near, shorten
from shipctl.spec.units import Duration, Percentage, Rate, Size
from shipctl.store.model_reading import ModelReader
from shipctl.store.registered import RegisteredVersion
from shipctl.store.versions import is_prerelease

_COMPARISON = re.compile(r"([A-Za-z][\w.@/\[\]-]*)(>=|<=|!=|>|<|=)(.+)", re.DOTALL)
_FIELD = re.compile(r"([a-z]+):(.*)", re.DOTALL)
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}


@dataclass(frozen=True)
class Candidate:
    """What a query is asked about: a version, and the tags of its model."""

    version: RegisteredVersion
    model_tags: Mapping[str, str]


Term = Callable[[Candidate], bool]


class Query:
    """A query that was read; see the module's documentation for the syntax."""

    def __init__(self, text: str) -> None:
        """Read a query.

        :raises SpecError: if it has no meaning; the message says which word
        """
        self.text = text
        try:
            words = shlex.split(text)
        except ValueError as exc:
            message = f"cannot read the query {shorten(text)}: {str(exc).lower()}; close the quotes"
            raise SpecError(message) from None
        self._terms = [_term(word) for word in words]
        self._retired = "is:retired" in words

    def matches(self, candidate: Candidate) -> bool:
        """Whether every word holds."""
        if candidate.version.retired is not None and not self._retired:
            return False
        return all(term(candidate) for term in self._terms)


def search(registry: ModelReader, query: str) -> list[RegisteredVersion]:
    """Return the versions of all models for which every word of the query holds, by name and then highest first.

    :raises SpecError: if the query has no meaning
    """
    asked = Query(query)
    found = []
    for name, state in registry.states().items():
        versions = registry.read(name, state, state.sorted()[::-1])
        found += [version for version in versions if asked.matches(Candidate(version, state.tags))]
    return found


def _term(word: str) -> Term:
    field = _FIELD.fullmatch(word)
    if field is not None:
        return _field(word, field[1], field[2])
    comparison = _COMPARISON.fullmatch(word)
    if comparison is not None:
        return _metric(word, *comparison.groups())
    wanted = word.casefold()
    return lambda candidate: any(wanted in text.casefold() for text in _texts(candidate))


def _field(word: str, field: str, value: str) -> Term:
    if not value:
        message = f"{shorten(word)} lacks what {field} has to be; write {field}:VALUE"
        raise SpecError(message)
    if field in _TABLES:
        table = _TABLES[field]
        key, equals, wanted = value.partition("=")
        return lambda candidate: _has(table(candidate), key, wanted if equals else "*")
    if field == "is":
        if value not in _KINDS:
            message = f"{shorten(word)} means nothing{near(value, _KINDS) or '; write is:' + ' or is:'.join(_KINDS)}"
            raise SpecError(message)
        return _KINDS[value]
    if field not in _FIELDS:
        known = sorted({*_FIELDS, *_TABLES, "is"})
        message = (
            f"there is no field {field!r} to search{near(field, known) or '; there are ' + listed(known)}"
        )
        raise SpecError(message)
    values = _FIELDS[field]
    return lambda candidate: any(fnmatchcase(text, value) for text in values(candidate))


def _has(table: Mapping[str, str], key: str, wanted: str) -> bool:
    return any(fnmatchcase(name, key) and fnmatchcase(value, wanted) for name, value in table.items())


def _metric(word: str, name: str, comparison: str, text: str) -> Term:
    bound = _quantity(word, text)
    compare = _OPERATORS[comparison]

    def holds(candidate: Candidate) -> bool:
        value = candidate.version.about.metrics.get(name)
        return value is not None and math.isfinite(value) and compare(value, bound)

    return holds


def _quantity(word: str, text: str) -> float:
    """Return a number in base units: seconds, bytes, fractions, per second."""
    for kind in (float, Duration, Size, Percentage, Rate):
        try:
            value = float(kind(text))
        except ValueError:
            continue
        if math.isfinite(value):
            return value
    message = f"cannot compare with {shorten(text)} in {shorten(word)}; write a number, such as 0.97, 97%, 20ms or 3MiB"
    raise SpecError(message)


def _texts(candidate: Candidate) -> Iterable[str]:
    version = candidate.version
    yield from (
        version.reference,
        version.stage or "",
        version.about.description or "",
        version.about.owner or "",
    )
    yield from version.aliases
    for table in (version.tags, candidate.model_tags, version.about.labels):
        yield from (f"{key}={value}" for key, value in table.items())


def _data(candidate: Candidate) -> list[str]:
    data = candidate.version.lineage.get("data")
    return [text for pair in data.items() for text in map(str, pair)] if isinstance(data, Mapping) else []


_TABLES: dict[str, Callable[[Candidate], Mapping[str, str]]] = {
    "tag": lambda c: {**c.model_tags, **c.version.tags},
    "label": lambda c: c.version.about.labels,
}
_KINDS: dict[str, Term] = {
    "retired": lambda c: c.version.retired is not None,
    "prerelease": lambda c: is_prerelease(c.version.version),
    "aliased": lambda c: bool(c.version.aliases),
}
_FIELDS: dict[str, Callable[[Candidate], Iterable[str]]] = {
    "name": lambda c: [c.version.name],
    "version": lambda c: [c.version.version],
    "stage": lambda c: [c.version.stage or "none"],
    "alias": lambda c: c.version.aliases,
    "owner": lambda c: [c.version.about.owner or ""],
    "license": lambda c: [c.version.about.license or ""],
    "by": lambda c: [c.version.by.user, str(c.version.by)],
    "parent": lambda c: [str(c.version.lineage.get("parent") or "")],
    "spec": lambda c: [str(c.version.lineage.get("spec") or "")],
    "run": lambda c: [str(c.version.lineage.get("run") or "")],
    "digest": lambda c: [c.version.digest],
    "data": _data,
}
