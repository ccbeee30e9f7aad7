"""What runners tell each other of a plan: on which machine its measurements were made.

Fingerprints of measurements name the machine, so that another one measures for itself. A later run of the very same
plan is no other question, though: a CI job that stopped for an approval goes on elsewhere with what was measured.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING

from shipctl.engine.fingerprint import host_fingerprint
from shipctl.errors import ShipctlError
from shipctl.records import canonical_json, digest_of
from shipctl.store.shared import SharedStore

if TYPE_CHECKING:
    from shipctl.engine.pipeline import Pipeline
    from shipctl.engine.walk import Walk


def _key(pipeline: Pipeline) -> str:
    """Return the object's key: the same for the same stages, code, tools, options and sources on any machine."""
    parts = {
        name: {key: value for key, value in components.items() if key != "host"}
        for name, components in pipeline.symbolic().items()
        if not pipeline.nodes[name].is_release
    }
    return f"runs/{pipeline.name}/{digest_of(parts)}.json"


def earlier_host(pipeline: Pipeline) -> str | None:
    """Return the host fingerprint of the last run of this plan whose measurements are shared, if there is one."""
    if not isinstance(pipeline.store, SharedStore):
        return None
    with suppress(ShipctlError, ValueError, KeyError, TypeError, RecursionError):
        body = pipeline.store.depot.objects.read(_key(pipeline))
        return str(json.loads(body)["host"]) if body is not None else None
    return None


def remember_run(pipeline: Pipeline, walk: Walk, run: str, exit_code: int) -> None:
    """Tell later runs of this plan where its measurements were made. What cannot be told is no loss but of time."""
    store = pipeline.store
    measured = any(
        end.components is not None and "host" in end.components and end.fingerprint is not None
        for end in walk.ends.values()
    )
    if not isinstance(store, SharedStore) or not measured:
        return
    body = {"host": walk.host or host_fingerprint(), "run": run, "exit_code": exit_code}
    with suppress(ShipctlError):
        store.depot.objects.write(_key(pipeline), canonical_json(body))
