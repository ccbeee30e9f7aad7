"""`--context NAME`, which stands for the option `context` of every release stage's target that has one.

It counts as if the spec said so: what is released by another context is another revision, and a plan file pins it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from shipctl.errors import SpecError

if TYPE_CHECKING:
    from shipctl.engine.graph import Node
    from shipctl.engine.options import PlannedOptions

TARGET = "target"
CONTEXT = "context"


def retargeted(node: Node, values: Mapping[str, Any], context: str) -> dict[str, Any] | None:
    """Return the option `target` of a stage, as ``values`` have it, with that context; None if it has no such option.

    :raises PluginError: if the target does not work
    """
    if not node.is_release or TARGET not in node.cls.options_model.model_fields:
        return None
    from shipctl.release.targets import TARGETS, target_name

    default = node.cls.options_model.model_fields[TARGET].default
    given = values.get(TARGET, default)
    try:
        target = TARGETS.load(target_name(given))
    except (SpecError, AttributeError):  # no such target, or none that is written rightly: its check says so
        return None
    if CONTEXT not in target.options_model.model_fields:
        return None
    below = given.get("with") if isinstance(given, Mapping) else getattr(given, "options", None)
    if below is not None and not isinstance(below, Mapping):
        return None
    return {"uses": target_name(given), "with": {**(below or {}), CONTEXT: context}}


def check_context(context: str, nodes: Iterable[Node], options: Mapping[str, PlannedOptions]) -> None:
    """Look whether the context is that of any target.

    :raises SpecError: if no target of the spec has one
    """
    for node in nodes:
        planned = options[node.id]
        if retargeted(node, {**planned.known, **planned.later}, context) is not None:
            return
    message = f"--context {context}: no target of this spec has a context; leave it out"
    raise SpecError(message)
