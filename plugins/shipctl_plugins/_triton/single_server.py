"""What is left of shipctl 0.1's layout: one server for all models of a target, without a door.

A release moves its model behind a door of its own (:meth:`Deployment.ensure_serving`); this here looks at such a
server and leaves it.
"""

from __future__ import annotations

from shipctl_plugins._triton.releases import Releases
from shipctl_plugins._triton.server import TritonServer


def single_server(releases: Releases) -> TritonServer | None:
    """Return the one server, if it runs."""
    return TritonServer.attach(releases.folder / "server")


def leave_single_server(releases: Releases, model: str) -> str | None:
    """Take a model from the one server, which stops with its last one; say what was done, None for nothing."""
    server = single_server(releases)
    models = releases.record().models
    others = [
        name
        for name, known in models.items()
        if name != model and known.stable is not None and not known.behind_door
    ]
    line = None
    if server is not None and others:
        server.unload(model)
        line = f"{model} was unloaded from the Triton server, which goes on serving {', '.join(others)}"
    elif server is not None:
        server.stop()
        line = f"the Triton server of {model} (pid {server.record.pid}) was stopped"
    else:
        TritonServer.clean_up(releases.folder / "server")
    releases.remove_serving(model)
    return line
