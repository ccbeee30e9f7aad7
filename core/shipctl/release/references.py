"""`{uses: NAME, with: {…}}`, or a name alone, as the class of the plugin that is meant and its options.

Targets and metric providers are named in the same way, found by the same rules as stages, and refused with the same
sentences.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

from pydantic import BeforeValidator, Field, ValidationError

from shipctl.errors import PluginError, SpecError
from shipctl.records import Record
from shipctl.spec.problems import Keys, Location, Part, Problems, listed, near, shorten
from shipctl.spec.validation import add_validation_errors
from shipctl.stages.base import API_VERSION

PluginT = TypeVar("PluginT")


class Reference(Record):
    """A plugin as a spec names it."""

    uses: str = Field(min_length=1, description="The plugin's name.")
    options: dict[str, Any] = Field(default_factory=dict, alias="with", description="Its options.")


def _by_name(value: Any) -> Any:
    return {"uses": value} if isinstance(value, str) else value


Named = Annotated[Reference, BeforeValidator(_by_name, json_schema_input_type=Reference | str)]
"""A field of options that names a plugin: its name alone will do."""


class Fault(NamedTuple):
    """What is wrong with a reference."""

    keys: Keys
    """Where, below the reference: ``("with", "port")``."""
    message: str
    part: Part = "value"


class WrongReferenceError(SpecError):
    """A plugin is named that there is none of, or its options are wrong."""

    def __init__(self, message: str, reference: Reference, faults: tuple[Fault, ...]) -> None:
        """``faults`` say in pieces what ``message`` says as a whole."""
        super().__init__(message)
        self.reference = reference
        self.faults = faults


def place_of(reference: Reference, tree: Any) -> Keys | None:
    """Return where a reference stands in ``tree``, the options of a stage as they were written; None if nowhere."""
    items: Iterable[tuple[str | int, Any]] = ()
    if isinstance(tree, Mapping):
        if dict(tree) in (
            {"uses": reference.uses, "with": reference.options},
            _alone(reference, {"uses": reference.uses}),
        ):
            return ()
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    elif tree is not None and tree == _alone(reference, reference.uses):
        return ()
    for key, value in items:
        below = place_of(reference, value) if key != "name" else None
        if below is not None:
            return (key, *below)
    return None


def _alone(reference: Reference, form: Any) -> Any:
    """Return a form in which a plugin may be named that is given no options."""
    return None if reference.options else form


@dataclass(frozen=True)
class Kind(Generic[PluginT]):
    """One kind of plugin: where it is found, what it has to be, and what it is called in messages."""

    group: str
    """The entry-point group."""
    base: type[PluginT]
    """The class that it derives from."""
    noun: str
    """Such as `metric provider`."""

    def resolve(
        self, reference: str | Mapping[str, Any] | Reference, installed: Iterable[EntryPoint] | None = None
    ) -> tuple[type[PluginT], Any]:
        """Return the class that is meant and its validated options. Only this one plugin is imported.

        ``installed`` replaces what importlib.metadata finds, for tests.

        :raises SpecError: if nothing of that name is installed, or the options are wrong (all of it is said at once)
        :raises PluginError: if the plugin does not work, or two distributions bring it
        """
        wanted = self._read(reference)
        try:
            plugin = self.load(wanted.uses, installed)
        except SpecError as exc:
            raise WrongReferenceError(str(exc), wanted, (Fault(("uses",), str(exc)),)) from exc
        return plugin, self._options(plugin, wanted)

    def load(self, name: str, installed: Iterable[EntryPoint] | None = None) -> type[PluginT]:
        """Import the plugin ``name`` and nothing else.

        :raises SpecError: if there is none
        :raises PluginError: if it does not import, is something else, or was written for another API version
        """
        points = tuple(installed) if installed is not None else _installed(self.group, tuple(sys.path))
        found = {point.value: point for point in points if point.name == name}
        if not found:
            known = sorted({point.name for point in points})
            hint = near(name, known) or f"; there are {listed(known)}"
            message = f"no {self.noun} named {shorten(name)} is installed{hint}"
            raise SpecError(message)
        if len(found) > 1:
            owners = " and ".join(sorted(f"{_owner(point)} ({point.value})" for point in found.values()))
            message = f"{self.noun} {name!r} is declared by {owners}; uninstall one of them"
            raise PluginError(message)
        return self._import(next(iter(found.values())))

    def _import(self, point: EntryPoint) -> type[PluginT]:
        where = f"{self.noun} {point.name!r} of {_owner(point)} ({point.value})"
        try:
            plugin = point.load()
        except Exception as exc:  # a plugin may fail in any way while it imports, and only it shall
            message = f"{where} does not import: {type(exc).__name__}: {exc}"
            raise PluginError(message) from exc
        if not (isinstance(plugin, type) and issubclass(plugin, self.base)):
            message = f"{where} is not a subclass of shipctl.{self.base.__name__}"
            raise PluginError(message)
        version = getattr(plugin, "api_version", None)
        if version != API_VERSION:
            advice = f"this shipctl has version {API_VERSION}: set `api_version = {API_VERSION}` once it fits"
            message = f"{where} was written for plugin API {version}; {advice}"
            raise PluginError(message)
        return plugin

    def _read(self, reference: str | Mapping[str, Any] | Reference) -> Reference:
        if isinstance(reference, Reference):
            return reference
        if isinstance(reference, str):
            reference = {"uses": reference}
        return validated(Reference, reference, f"the {self.noun}", self.noun.split()[-1])

    def _options(self, plugin: type[PluginT], wanted: Reference) -> Any:
        model: type[Record] = getattr(plugin, "options_model", Record)
        whose = f"{self.noun} {wanted.uses!r}"
        try:
            return model.model_validate(dict(wanted.options))
        except ValidationError as exc:
            faults = _Faults(whose)
            add_validation_errors(faults, exc, model, dict(wanted.options), ("with",))
            raise WrongReferenceError(faults.text(), wanted, tuple(faults.found)) from exc


def name_of(reference: str | Mapping[str, Any] | Reference) -> str:
    """Return the name of the plugin that is meant, or "" where it does not say; nothing is looked up."""
    if isinstance(reference, Reference):
        return reference.uses
    return reference if isinstance(reference, str) else str(reference.get("uses", ""))


RecordT = TypeVar("RecordT", bound=Record)


def validated(model: type[RecordT], given: Mapping[str, Any], whose: str, where: str = "with") -> RecordT:
    """Return what ``given``, which stands below the key ``where``, says, as a ``model``.

    :raises SpecError: that lists all that is wrong, each line after ``whose``
    """
    try:
        return model.model_validate(dict(given))
    except ValidationError as exc:
        faults = _Faults(whose)
        add_validation_errors(faults, exc, model, dict(given), (where,))
        raise SpecError(faults.text()) from exc


class _Faults(Problems):
    """What is wrong with something that the spec names, each with where it stands below that."""

    def __init__(self, whose: str) -> None:
        super().__init__(_Whose(whose))
        self._whose = whose
        self.found: list[Fault] = []

    def add(self, where: Location | Keys, message: str, part: Part = "value") -> None:
        """Record a problem."""
        super().add(where, message, part)
        if not isinstance(where, Location):
            self.found.append(Fault(where, f"{self._whose}: {message}", part))

    def text(self) -> str:
        """Return all of it, a line each."""
        try:
            self.raise_if_any()
        except SpecError as exc:
            return str(exc)
        return f"{self._whose} is wrong"


@dataclass(frozen=True)
class _Whose:
    """Stands for the place in the spec, which whoever names a plugin does not always know."""

    name: str

    def locate(self, keys: tuple[str | int, ...], part: str = "value") -> Location:
        """Return the plugin's name in place of a file's."""
        return Location(self.name)


@cache
def _installed(group: str, _path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the plugins of one kind that this ``sys.path`` holds; a process looks for them once."""
    return tuple(entry_points(group=group))


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"
