"""Release stage `mlflow-register`: a published package becomes a version of a registered model in MLflow."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, ClassVar, Literal
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

from pydantic import AfterValidator, Field

from shipctl.engine.project import Project
from shipctl.errors import ShipctlError, StageError, UnavailableError
from shipctl.spec.fields import Texts
from shipctl.spec.units import Duration
from shipctl.stages.artifacts import ModelPackage
from shipctl.stages.base import Phase, ReleaseStage, ReleaseState, Serving, StageInputs, StageOptions, Step
from shipctl.stages.context import CheckContext, ReleaseContext
from shipctl.store.depot import Depot, open_depot
from shipctl.store.local import LocalStore
from shipctl_plugins._mlflow.client import NAME, MlflowServer, Version
from shipctl_plugins._mlflow.entry import PIPELINE, REVISION, VERSION, Entry, make_entry
from shipctl_plugins._mlflow.login import DEFAULT_TIMEOUT_S, Login, public_uri, tracking_uri
from shipctl_plugins._mlflow.registration import Registration

DEFAULT_PORTS = {"http": 80, "https": 443}
READY = "READY"
_ALIAS = re.compile(r"(?!(?i:latest|v\d+)$)[A-Za-z][\w-]*")
_CONNECT_S = 5.0

Task = Literal["look", "run", "version", "alias"]


def _aliases(values: Sequence[str]) -> Sequence[str]:
    for value in values:
        if not _ALIAS.fullmatch(value):
            message = (
                f"{value!r} cannot be an alias in MLflow; begin with a letter, go on with letters, digits, - and _, "
                "and leave out `latest` and `v1`, which mean versions there"
            )
            raise ValueError(message)
    return values


class MlflowRegisterOptions(StageOptions):
    """Which server, under which names, as whom."""

    uri: str | None = Field(
        default=None,
        min_length=1,
        description="Address of the MLflow server, https://HOST, without credentials; MLFLOW_TRACKING_URI by default.",
    )
    name: str | None = Field(
        default=None,
        pattern=f"^{NAME.pattern}$",
        description="Name of the registered model; `metadata.name` by default.",
    )
    experiment: str | None = Field(
        default=None,
        min_length=1,
        description="Experiment that gets a run with the metrics of each version; the model's name by default.",
    )
    alias: Annotated[Texts, AfterValidator(_aliases)] = Field(
        default=(),
        description="Alias, or several, that point to the version from then on, such as `production`.",
    )
    tags: dict[str, str] = Field(default_factory=dict, description="Further tags of model, version and run.")
    token: str | None = Field(
        default=None, description="Bearer token, from `secrets`; MLFLOW_TRACKING_TOKEN by default."
    )
    username: str | None = Field(
        default=None, description="User name, from `secrets`; MLFLOW_TRACKING_USERNAME by default."
    )
    password: str | None = Field(
        default=None, description="Password, from `secrets`; MLFLOW_TRACKING_PASSWORD by default."
    )
    timeout: Duration = Field(
        default=Duration(DEFAULT_TIMEOUT_S),
        description="How long one request may take; each is tried three times.",
    )


class MlflowRegisterInputs(StageInputs):
    """What it takes."""

    package: ModelPackage


class MlflowRegisterState(ReleaseState):
    """What it remembers between steps."""

    task: Task = Field(default="look", description="What the next step does.")
    previous: dict[str, int | None] = Field(
        default_factory=dict, description="Alias to the version that it pointed to before, None for none."
    )
    version: int | None = Field(default=None, description="MLflow's version number of this release.")
    run_id: str | None = Field(default=None, description="The MLflow run with its metrics.")


class MlflowRegister(ReleaseStage[MlflowRegisterOptions, MlflowRegisterInputs, MlflowRegisterState]):
    """Register a published package with an MLflow server: version, run with metrics, tags, aliases.

    Everything is looked for by the package's digest before it is made, so that a release which was killed goes on and
    makes nothing twice. The files stay in the store: a version's source refers to them.
    """

    api_version: ClassVar[int] = 1
    requires: ClassVar[Mapping[str, str]] = {"mlflow": "shipctl[mlflow]"}

    def __init__(self, options: MlflowRegisterOptions) -> None:
        # While a plan is made, options with secrets among them come as they were written.
        super().__init__(MlflowRegisterOptions.model_validate(dict(options)))

    def target(self) -> str:
        """Return the target's name: one per server."""
        try:
            uri = tracking_uri(self.options.uri)
        except ShipctlError:
            return "mlflow"
        parts = urlsplit(uri)
        place = f"{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else uri
        return "-".join(["mlflow", *re.findall(r"[A-Za-z0-9.]+", place)])

    def check(self, ctx: CheckContext) -> None:
        """See whether a server is named and something listens there; whether it lets us in shows later."""
        _connect(tracking_uri(self.options.uri), min(_CONNECT_S, float(self.options.timeout)))

    def preview(self, ctx: ReleaseContext) -> Sequence[str]:
        """Say what the aliases point to and what would change."""
        name = self._name(ctx)
        try:
            model = self._server.model(name)
        except ShipctlError as exc:
            return [f"what would change cannot be said: {exc}"]
        where = f"in MLflow at {self._server.shown}"
        if model is None:
            lines = [f"{name} is registered {where} for the first time"]
        else:
            lines = [f"{name} gets a version for {ctx.version} {where}, if it has none"]
        for alias in self.options.alias:
            before = model.aliases.get(alias) if model is not None else None
            lines.append(f"alias {alias} is set to it (now {_version_or_nothing(before)})")
        return lines

    def in_place(self, inputs: MlflowRegisterInputs, ctx: ReleaseContext) -> bool:
        """Whether the server has the version, with its tags, and the aliases point to it; not if it does not answer."""
        registration = self._registration(ctx)
        try:
            version = registration.find(inputs.package.digest)
            model = self._server.model(registration.model)
        except ShipctlError:
            return False
        if version is None or model is None or version.status != READY:
            return False
        aliased = all(model.aliases.get(alias) == version.version for alias in self.options.alias)
        return aliased and version.tags.get(REVISION) == ctx.revision

    def step(
        self, state: MlflowRegisterState, inputs: MlflowRegisterInputs, ctx: ReleaseContext
    ) -> tuple[MlflowRegisterState, Step]:
        """Do the task that the state names; each looks for what of it is done already."""
        tasks = {"look": self._look, "run": self._run, "version": self._version, "alias": self._alias}
        return tasks[state.task](state, inputs, ctx)

    def abort(
        self, state: MlflowRegisterState, inputs: MlflowRegisterInputs, ctx: ReleaseContext
    ) -> tuple[MlflowRegisterState, Step]:
        """Put the aliases back, then delete what this release has made; say what somebody else holds on to."""
        label = f"{inputs.package.name} {ctx.version}"
        if state.task == "look":
            return state, Step(phase=Phase.REJECTED, message=f"nothing was changed in MLflow for {label}")
        registration = self._registration(ctx)
        notes = registration.restore(state.previous, state.version)
        notes += registration.withdraw(inputs.package.digest)
        before = [f"{alias} points to version {number}" for alias, number in state.previous.items() if number]
        said = "; ".join([f"{label} was withdrawn from MLflow", *(notes or before)])
        return state, Step(phase=Phase.ROLLED_BACK if before else Phase.REJECTED, message=said)

    def status(self, ctx: ReleaseContext) -> Sequence[Serving]:
        """Return what each alias points to; without one, the newest version of this pipeline."""
        name = self._name(ctx)
        model = self._server.model(name)
        if model is None:
            return []
        found: dict[int, list[str]] = {}
        for alias in self.options.alias:
            if alias in model.aliases:
                found.setdefault(model.aliases[alias], []).append(alias)
        if not self.options.alias:
            newest = self._server.versions(name, PIPELINE, ctx.pipeline)[-1:]
            found = {item.version: [] for item in newest}
        versions = [(self._server.version(name, number), aliases) for number, aliases in found.items()]
        return [_serving(item, aliases, self._server.shown) for item, aliases in versions if item is not None]

    # -- steps -----------------------------------------------------------------------------------------------

    def _look(
        self, state: MlflowRegisterState, inputs: MlflowRegisterInputs, ctx: ReleaseContext
    ) -> tuple[MlflowRegisterState, Step]:
        """See that the package is published, and remember what the aliases point to."""
        self._server.ping()
        package = inputs.package
        with _depot(ctx) as depot:
            if depot.manifest(package.digest) is None:
                message = (
                    f"{package.name}@{package.version} ({package.digest[:12]}) is not in the store "
                    f"{depot.objects.uri}, and MLflow only refers to it; let `publish` run before this stage (add it "
                    "to `needs`)"
                )
                raise StageError(message)
        model = self._server.model(self._name(ctx))
        aliases = model.aliases if model is not None else {}
        previous = {alias: aliases.get(alias) for alias in self.options.alias}
        state = state.model_copy(update={"task": "run", "previous": previous})
        return state, Step(phase=Phase.PREPARING, message=f"MLflow at {self._server.shown} answers")

    def _run(
        self, state: MlflowRegisterState, inputs: MlflowRegisterInputs, ctx: ReleaseContext
    ) -> tuple[MlflowRegisterState, Step]:
        entry, registration = self._entry(inputs, ctx), self._registration(ctx)
        for name in entry.left_out:
            ctx.log(f"metric {name} is no finite number and is not sent to MLflow")
        run = registration.ensure_run(entry, ctx.now)
        state = state.model_copy(update={"task": "version", "run_id": run.id})
        message = (
            f"run {entry.reference} of experiment {registration.experiment} has {len(entry.metrics)} metrics"
        )
        return state, Step(phase=Phase.PREPARING, message=message)

    def _version(
        self, state: MlflowRegisterState, inputs: MlflowRegisterInputs, ctx: ReleaseContext
    ) -> tuple[MlflowRegisterState, Step]:
        entry, registration = self._entry(inputs, ctx), self._registration(ctx)
        version, made = registration.ensure_version(entry, state.run_id or "")
        state = state.model_copy(update={"task": "alias", "version": version.version})
        how = "is registered as" if made else "is there already, as"
        message = f"{entry.reference} {how} version {version.version} of {registration.model}"
        return state, Step(phase=Phase.PROMOTING, message=message)

    def _alias(
        self, state: MlflowRegisterState, inputs: MlflowRegisterInputs, ctx: ReleaseContext
    ) -> tuple[MlflowRegisterState, Step]:
        registration, version = self._registration(ctx), state.version
        if version is None:
            message = "the release's state names no version; run again"
            raise StageError(message)
        registration.point(self.options.alias, version)
        moved = [
            f"{alias} points to it (before: {_version_or_nothing(before)})"
            for alias, before in state.previous.items()
            if before != version
        ]
        reference = f"{inputs.package.name}@{inputs.package.version}"
        message = (
            f"{reference} is version {version} of {registration.model} in MLflow at {self._server.shown}"
        )
        return state, Step(phase=Phase.DONE, message="; ".join([message, *moved]))

    # -- what and where --------------------------------------------------------------------------------------

    @cached_property
    def _server(self) -> MlflowServer:
        options = self.options
        return MlflowServer(
            Login(
                uri=tracking_uri(options.uri),
                token=options.token,
                username=options.username,
                password=options.password,
                timeout=float(options.timeout),
            )
        )

    def _name(self, ctx: ReleaseContext) -> str:
        return self.options.name or ctx.pipeline

    def _registration(self, ctx: ReleaseContext) -> Registration:
        name = self._name(ctx)
        return Registration(self._server, name, self.options.experiment or name, ctx.run)

    def _entry(self, inputs: MlflowRegisterInputs, ctx: ReleaseContext) -> Entry:
        with _depot(ctx) as depot:
            store = depot.objects.uri
        return make_entry(
            inputs.package,
            store=store,
            pipeline=ctx.pipeline,
            revision=ctx.revision,
            tags=self.options.tags,
        )


def _depot(ctx: ReleaseContext) -> Depot:
    return open_depot(ctx.store, ctx.base, LocalStore(Project(ctx.project).store))


def _connect(uri: str, timeout: float) -> None:
    """See whether something listens at an http(s) address.

    :raises UnavailableError: if not
    """
    parts = urlsplit(uri)
    host = parts.hostname
    if parts.scheme not in DEFAULT_PORTS or host is None:
        return
    if parts.scheme in getproxies() and not proxy_bypass(host):
        return  # the proxy knows the way, and perhaps the name
    try:
        port = parts.port or DEFAULT_PORTS[parts.scheme]
        socket.create_connection((host, port), timeout).close()
    except (OSError, ValueError) as exc:
        reason = "timed out" if isinstance(exc, TimeoutError) else getattr(exc, "strerror", None) or str(exc)
        message = (
            f"cannot reach MLflow at {public_uri(uri)}: {reason.lower()}; see whether it runs, and whether the address "
            "is right"
        )
        raise UnavailableError(message) from None


def _version_or_nothing(number: int | None) -> str:
    return "nothing" if number is None else f"version {number}"


def _serving(version: Version, aliases: Sequence[str], address: str) -> Serving:
    page = f"{address}/#/models/{quote(version.name)}/versions/{version.version}"
    details = {"mlflow version": str(version.version), "run": version.run_id, "alias": ", ".join(aliases)}
    return Serving(
        name=version.name,
        version=version.tags.get(VERSION, ""),
        revision=version.tags.get(REVISION, ""),
        since=version.created,
        healthy=version.status == READY,
        endpoints={"page": page} if urlsplit(address).scheme in DEFAULT_PORTS else {},
        details={name: value for name, value in details.items() if value},
    )
