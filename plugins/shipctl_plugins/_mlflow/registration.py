"""A package's version in MLflow: made once, pointed to, and taken away again.

Each act looks first and does what is missing, so it can be killed anywhere and asked for again. What a release has made
carries the id of its run; nothing else is ever deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from shipctl.errors import StageError
from shipctl_plugins._mlflow.client import Experiment, MlflowServer, Registered, RunRecord, Version
from shipctl_plugins._mlflow.entry import DIGEST, PIPELINE, RUN, Entry


@dataclass(frozen=True)
class Registration:
    """One registered model of a server, as one run of shipctl changes it."""

    server: MlflowServer
    model: str
    """Name of the registered model."""
    experiment: str
    """Name of the experiment with the runs."""
    run: str
    """Id of shipctl's run."""

    def find(self, digest: str) -> Version | None:
        """Return the version of a package, if there is one."""
        return next(iter(self.server.versions(self.model, DIGEST, digest)), None)

    # -- there -----------------------------------------------------------------------------------------------

    def ensure_run(self, entry: Entry, now: Callable[[], float]) -> RunRecord:
        """Have exactly one run with the package's metrics and parameters.

        :raises StageError: if the experiment was deleted
        """
        server, experiment = self.server, self._ensure_experiment(entry)
        runs, _ = server.ensure(
            lambda: server.runs(experiment.id, DIGEST, entry.digest) or None,
            lambda: server.call(
                "create_run",
                experiment=experiment.id,
                name=entry.reference,
                start_time=int(now() * 1000),
                tags={**entry.version_tags, RUN: self.run},
            ),
        )
        run, *twins = runs
        for twin in twins:  # an answer was lost, and what was asked for came through after all
            if twin.tags.get(RUN) == self.run:
                server.discard("delete_run", run_id=twin.id)
        if not run.finished:
            missing = {name: value for name, value in entry.metrics.items() if name not in run.metrics}
            server.log_run(run.id, run.start_time, missing, entry.params)
            server.call("finish_run", run_id=run.id)
        return run

    def ensure_version(self, entry: Entry, run_id: str) -> tuple[Version, bool]:
        """Have the registered model and exactly one version for the package; return it, and whether it is new."""
        server, name = self.server, self.model
        model, _ = server.ensure(
            lambda: server.model(name),
            lambda: server.call(
                "create_registered_model",
                name=name,
                description=entry.model_description,
                tags={**entry.model_tags, RUN: self.run},
            ),
        )
        self._describe(model, entry)
        versions, made = server.ensure(
            lambda: server.versions(name, DIGEST, entry.digest) or None,
            lambda: server.call(
                "create_version",
                name=name,
                source=entry.source,
                run_id=run_id,
                description=entry.description,
                tags={**entry.version_tags, RUN: self.run},
            ),
        )
        version, *twins = versions
        for twin in twins:  # as above
            if twin.tags.get(RUN) == self.run and twin.version not in model.aliases.values():
                server.discard("delete_version", name=name, version=twin.version)
        for key, value in entry.version_tags.items():
            if version.tags.get(key) != value:
                server.call("tag_version", name=name, version=version.version, key=key, value=value)
        if version.description != entry.description:
            server.call("describe_version", name=name, version=version.version, description=entry.description)
        return version, made

    def point(self, aliases: Sequence[str], version: int) -> None:
        """Let aliases point to a version.

        :raises StageError: if the model is gone
        """
        model = self.server.model(self.model)
        if model is None:
            message = f"{self.model} is gone from MLflow at {self.server.shown}; run again"
            raise StageError(message)
        for alias in aliases:
            if model.aliases.get(alias) != version:
                self.server.call("set_alias", name=self.model, alias=alias, version=version)

    def _ensure_experiment(self, entry: Entry) -> Experiment:
        server = self.server
        found, _ = server.ensure(
            lambda: server.experiment(self.experiment),
            lambda: server.call(
                "create_experiment", name=self.experiment, tags={PIPELINE: entry.model_tags[PIPELINE]}
            ),
        )
        if not found.active:
            message = (
                f"experiment {self.experiment!r} was deleted in MLflow at {server.shown}; restore it there, or set "
                "`experiment` to another name"
            )
            raise StageError(message)
        return found

    def _describe(self, model: Registered, entry: Entry) -> None:
        """Bring tags and description up to date; a description that somebody gave to a model of their own stays."""
        ours = model.tags.get(PIPELINE) == entry.model_tags[PIPELINE] or not model.description
        if ours and entry.model_description and model.description != entry.model_description:
            self.server.call(
                "describe_registered_model", name=model.name, description=entry.model_description
            )
        for key, value in entry.model_tags.items():
            if model.tags.get(key) != value:
                self.server.call("tag_registered_model", name=model.name, key=key, value=value)

    # -- and back --------------------------------------------------------------------------------------------

    def restore(self, previous: Mapping[str, int | None], version: int | None) -> list[str]:
        """Put back the aliases that still point to ``version``; return what is to be said about the others."""
        server, model, notes = self.server, self.server.model(self.model), list[str]()
        if model is None or version is None:
            return notes
        for alias, before in previous.items():
            now = model.aliases.get(alias)
            if now == before:
                continue
            if now != version:
                stands = f"was moved to version {now}" if now is not None else "was removed"
                notes.append(f"{alias} {stands} by somebody else and stays so")
            elif before is None:
                server.discard("delete_alias", name=self.model, alias=alias)
            elif server.version(self.model, before) is None:
                server.discard("delete_alias", name=self.model, alias=alias)
                notes.append(f"{alias} is removed, since version {before}, which it pointed to, is gone")
            else:
                server.call("set_alias", name=self.model, alias=alias, version=before)
        return notes

    def withdraw(self, digest: str) -> list[str]:
        """Delete version, run and model where this run has made them and nobody else uses them; return what stays."""
        server, model, notes = self.server, self.server.model(self.model), list[str]()
        if model is not None:
            for version in server.versions(self.model, DIGEST, digest):
                if version.tags.get(RUN) != self.run:
                    continue
                holders = [alias for alias, number in model.aliases.items() if number == version.version]
                if holders:
                    notes.append(
                        f"version {version.version} stays, since {' and '.join(holders)} points to it"
                    )
                    continue
                server.discard("delete_version", name=self.model, version=version.version)
            if model.tags.get(RUN) == self.run and not server.versions(self.model):
                server.discard("delete_registered_model", name=self.model)
        experiment = server.experiment(self.experiment)
        if experiment is not None and experiment.active and not notes:
            for run in server.runs(experiment.id, DIGEST, digest):
                if run.tags.get(RUN) == self.run:
                    server.discard("delete_run", run_id=run.id)
        return notes
