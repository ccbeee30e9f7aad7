"""The processes of shipctl that can run in a cluster: how they are started, and what they may do there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from shipctl_plugins._kubernetes.app import App
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions
from shipctl_plugins._kubernetes.manifests.parts import WorkerOptions
from shipctl_plugins._kubernetes.manifests.roles import Rule, comparator_rules, watchdog_rules


@dataclass(frozen=True)
class Worker:
    """One of them."""

    name: str
    """Its name behind that of the app, its label `app.kubernetes.io/component`, and the option that it has."""
    module: str
    """What Python runs; it is given `--app` and `--namespace`."""
    rules: Callable[[KubernetesOptions, App], list[Rule]]
    """What it may do, with the account that it runs as; with nothing it has no token either."""
    ports: Mapping[str, int] = field(default_factory=dict)
    """Name to port of what it listens at; with any it has a Service, and its own network policy."""

    def options(self, options: KubernetesOptions) -> WorkerOptions | None:
        """Return its options, None if it is not to run."""
        found: WorkerOptions | None = getattr(options, self.name)
        return found

    def command(self, app: App) -> list[str]:
        """Return how it is started."""
        return ["python", "-m", self.module, "--app", app.name, "--namespace", app.namespace]


WORKERS = (
    Worker("watchdog", "shipctl_plugins._kubernetes.watchdog", watchdog_rules),
    Worker(
        "comparator",
        "shipctl_plugins._kubernetes.comparator",
        comparator_rules,
        ports={"http": 8000, "grpc": 8001, "results": 8002},
    ),
)
