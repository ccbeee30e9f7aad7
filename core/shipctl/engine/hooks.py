"""Tells hook implementations what happens. Each is called by itself: one that raises silences no other."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import entry_points

import pluggy

from shipctl.stages import hookspecs
from shipctl.stages.events import Event

HOOK_GROUP = "shipctl.hooks"


class Hooks:
    """The hooks of one run."""

    def __init__(self, plugins: Iterable[object] = (), *, installed: bool = True) -> None:
        """``plugins`` are objects with ``@hookimpl`` methods; ``installed`` adds those of the entry points."""
        self.problems: list[str] = []
        """What went wrong in hooks; none of it changed the run."""
        self._manager = pluggy.PluginManager("shipctl")
        self._manager.add_hookspecs(hookspecs)
        for index, plugin in enumerate(plugins):
            self._manager.register(plugin, name=f"{type(plugin).__name__} {index + 1}")
        points = entry_points(group=HOOK_GROUP) if installed else ()
        self.others = len(points)
        """How many were installed by others, who want to be told of every run."""
        for point in points:
            try:
                found = point.load()
                self._manager.register(found() if isinstance(found, type) else found, name=point.name)
            except Exception as exc:  # noqa: BLE001  (a hook may fail in any way; the run goes on)
                self.problems.append(
                    f"hook {point.name!r} ({point.value}) does not load: {type(exc).__name__}: {exc}"
                )

    def fire(self, event: Event) -> None:
        """Call every implementation of the event's hook."""
        caller = getattr(self._manager.hook, f"shipctl_{event.event}")
        for implementation in caller.get_hookimpls():
            try:
                implementation.function(*([event] if implementation.argnames else []))
            except BrokenPipeError:
                continue  # who was to read a display has gone, which is no fault of the hook
            except Exception as exc:  # noqa: BLE001  (hooks observe: what they raise changes nothing)
                self.problems.append(
                    f"hook {implementation.plugin_name!r} failed in {caller.name}: {type(exc).__name__}: {exc}"
                )
