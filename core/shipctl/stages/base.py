"""What a plugin author writes: a transform stage, which makes files, or a release stage, which moves a system.

A stage says what it takes and gives by three small records: its options, its inputs and its outputs. The
engine reads them from the class's type arguments, so there is nothing to declare twice::

    class Options(StageOptions):
        level: int = Field(default=9, description="Compression level.")

    class Inputs(StageInputs):
        model: OnnxModel

    class Outputs(StageOutputs):
        model: OnnxModel

    class Squeeze(Stage[Options, Inputs, Outputs]):
        \"\"\"Make an ONNX model smaller.\"\"\"

        api_version = 1

        def run(self, inputs: Inputs, ctx: StageContext) -> Outputs: ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, get_args, get_origin

from pydantic import Field

from shipctl.records import Record
from shipctl.stages.context import CheckContext, JudgeContext, ReleaseContext, StageContext
from shipctl.stages.verdicts import Verdict

if TYPE_CHECKING:
    from shipctl.release.records import RecordStore

API_VERSION = 1
"""Version of this contract. It moves when a plugin written for the old one would break."""


class StageOptions(Record):
    """Base of a stage's options: what stands below ``with:``. A description per field, please."""


class StageInputs(Record):
    """Base of a stage's inputs; each field is an artifact class, a union of them, ``list[…]`` or ``… | None``.

    A list collects every variant and survivor; an optional one stays None where nothing fits. One made with
    :func:`FromSpec` is fed by what the spec itself brings, and by no stage.
    """


class StageOutputs(Record):
    """Base of a stage's outputs; each field is an artifact class."""


class NoOptions(StageOptions):
    """For a stage that has none."""


class ReleaseState(Record):
    """Base of what a release stage remembers between steps. Fields need defaults: the first step gets it bare."""


OptionsT = TypeVar("OptionsT", bound=StageOptions)
InputsT = TypeVar("InputsT", bound=StageInputs)
OutputsT = TypeVar("OutputsT", bound=StageOutputs)
StateT = TypeVar("StateT", bound=ReleaseState)


def Bound(default: Any = ..., *, description: str, **constraints: Any) -> Any:  # noqa: N802  (reads like pydantic's Field)
    """Return a field for an option that only judges (a minimum, a tolerance): changing it never runs a stage again."""
    return Field(default, description=description, json_schema_extra={"bound": True}, **constraints)


def FromSpec() -> Any:  # noqa: N802  (reads like pydantic's Field)
    """Return a field for an optional input that no stage feeds: the source model that others are compared with."""
    return Field(None, json_schema_extra={"from_spec": True})


_MODELS: dict[type[Record], str] = {
    StageOptions: "options_model",
    StageInputs: "inputs_model",
    StageOutputs: "outputs_model",
    ReleaseState: "state_model",
}


class _Plugin(ABC):
    """What transform and release stages have in common. All class attributes are read without an instance."""

    api_version: ClassVar[int]
    """The API_VERSION that the plugin was written for; every plugin states it."""
    options_model: ClassVar[type[StageOptions]]
    inputs_model: ClassVar[type[StageInputs]]
    requires: ClassVar[Mapping[str, str]] = {}
    """Modules that have to be importable, and what brings them: ``{"torch": "shipctl[torch]"}``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in getattr(cls, "__orig_bases__", ()):
            for argument in get_args(base) if isinstance(get_origin(base), type) else ():
                for parent, attribute in _MODELS.items():
                    if isinstance(argument, type) and issubclass(argument, parent):
                        setattr(cls, attribute, argument)

    @classmethod
    def summary(cls) -> str:
        """Return the first line of the class's docstring, for lists."""
        return (cls.__doc__ or "").strip().partition("\n")[0]


class Stage(_Plugin, Generic[OptionsT, InputsT, OutputsT]):
    """A transform stage: the same inputs and options give the same outputs, and nothing outside is changed.

    ``run`` may be called in another process, on another machine, twice, or never (when the store already
    has the outputs), so everything that the result depends on has to be declared here.
    """

    outputs_model: ClassVar[type[StageOutputs]]

    isolation: ClassVar[Literal["process", "inline"]] = "process"
    """`process`: in a worker that can be killed and gives its memory back. `inline`: quick, no framework."""
    subject: ClassVar[str | None] = None
    """A check names the input that it looks at. That input passes through unchanged to the stages after it."""
    measurement: ClassVar[bool] = False
    """Depends on the machine and its load: runs alone, in a fresh worker, and is valid for one host only."""
    max_age: ClassVar[float | None] = None
    """Seconds that a measurement stays valid; None means for ever."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """Names (or patterns such as `latency.*`) of the metrics in its reports."""
    reads: ClassVar[tuple[Literal["pipeline", "slo", "budget", "data", "metadata", "lineage"], ...]] = ()
    """Blocks of the spec that `run` (not `judge`) looks at; they count in the fingerprint. `lineage` is no block but
    everything above the stage (``ctx.lineage``): whatever changes there makes it run again."""
    tools: ClassVar[tuple[str, ...]] = ()
    """Installed distributions whose version matters to the result, such as `onnxruntime`."""
    templates: ClassVar[tuple[str, ...]] = ()
    """Folders of the template package that it renders from."""
    environ: ClassVar[tuple[str, ...]] = ()
    """Environment variables that it reads (never secrets)."""
    sources: ClassVar[tuple[str, ...]] = ()
    """Modules that it imports in a way that no one can see from the text."""
    requirements: ClassVar[tuple[str, ...]] = ()
    """Requirements (PEP 508) that cannot live beside shipctl's: the stage then runs in an environment made for it."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    def check(self, ctx: CheckContext) -> None:
        """Look, before anything has run, whether this stage can work here.

        :raises ShipctlError: :class:`UnavailableError` for what this machine lacks, :class:`SpecError` for
            what the spec would have to say differently
        """

    def limits(self) -> Mapping[str, int]:
        """Return how many artifacts a list input takes at most, by its name, where the options say so.

        What comes after that many in declared order is not even made, unless somebody else needs it. Asked when the
        plan is made; with options that are known only later, a stage has to leave out the rest by itself.
        """
        return {}

    @abstractmethod
    def run(self, inputs: InputsT, ctx: StageContext) -> OutputsT:
        """Do the work: read ``inputs.<name>.path``, write only below ``ctx.workdir``, return the outputs.

        :raises StageError: when it cannot be done; any other exception counts as a bug of the plugin
        """

    def judge(self, outputs: OutputsT, ctx: JudgeContext) -> Sequence[Verdict]:
        """Compare what was measured with the bounds. Quick and pure; called for cached outputs too."""
        return ()


class Phase(StrEnum):
    """Where a release stands."""

    PENDING = "pending"
    PREPARING = "preparing"
    PREFLIGHT = "preflight"
    SHIFTING = "shifting"
    ANALYSING = "analysing"
    PROMOTING = "promoting"
    WATCHING = "watching"
    PAUSED = "paused"
    DONE = "done"
    ABORTING = "aborting"
    ROLLED_BACK = "rolled-back"
    REJECTED = "rejected"

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens by itself."""
        return self in {Phase.DONE, Phase.ROLLED_BACK, Phase.REJECTED}


class Step(Record):
    """What one step of a release came to."""

    phase: Phase = Field(description="Where the release stands now.")
    message: str = Field(description="One line for a person.")
    requeue: float = Field(default=0.0, ge=0, description="Seconds until the next step is worth taking.")
    verdicts: tuple[Verdict, ...] = Field(default=(), description="What gates said in this step.")
    asks: str = Field(
        default="",
        description="In a pause without `requeue`: what people have to approve before it goes on, `promote` or "
        "`step 2`; several with commas between.",
    )


class Serving(Record):
    """One thing that a target serves, for `shipctl status`."""

    name: str = Field(description="The model's name on the target.")
    version: str = Field(description="Semantic version of the release that serves.")
    revision: str = Field(description="Digest of what serves.")
    since: float = Field(description="Seconds since the epoch at which it began to serve.")
    healthy: bool = Field(description="Whether it answered when asked just now.")
    endpoints: dict[str, str] = Field(default_factory=dict, description="Protocol to address.")
    details: dict[str, str] = Field(
        default_factory=dict, description="More for a person: Triton's version number, pid."
    )


class ReleaseStage(_Plugin, Generic[OptionsT, InputsT, StateT]):
    """A release stage: changes a system outside, in small steps that can each be asked for again.

    The engine calls ``step`` until the phase is final, and writes the state to the target after each. When
    shipctl is killed, the next run loads the state and goes on with the same step, so a step first looks
    at the target and then does only what is missing. When a step raises or ends in ``ABORTING``, the engine
    persists that first and then calls ``abort`` the same way. A rollback is the release of an
    earlier revision with its own inputs and ``ctx.intent == "rollback"``.
    """

    state_model: ClassVar[type[ReleaseState]]
    serves: ClassVar[bool] = True
    """Whether its target goes on to need what was released: the store keeps that until something newer serves."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @abstractmethod
    def target(self) -> str:
        """Return the name of the target that the options choose; locks, state and history belong to it."""

    def check(self, ctx: CheckContext) -> None:
        """Look, before anything has run, whether the target can be reached from here (see :meth:`Stage.check`)."""

    def preview(self, ctx: ReleaseContext) -> Sequence[str]:
        """Say, a line each, what would change on the target. Reads only."""
        return ()

    def records(self, ctx: ReleaseContext) -> RecordStore | None:
        """Return where the target keeps the records of this stage's releases; None for a file on this machine."""
        return None

    def diff(self, inputs: InputsT, ctx: ReleaseContext) -> Sequence[str]:
        """Return the lines of a unified diff from what is live to what a release would make of it. Reads only."""
        return ()

    def manifests(self, inputs: InputsT, ctx: ReleaseContext) -> dict[str, str]:
        """Return relative path to text of what a release puts on the target. Asks nobody."""
        return {}

    def rights(self, ctx: ReleaseContext) -> dict[str, str]:
        """Return relative path to text of what gives who runs shipctl the rights on its target. Asks nobody."""
        return {}

    @abstractmethod
    def in_place(self, inputs: InputsT, ctx: ReleaseContext) -> bool:
        """Ask the target whether ``ctx.revision`` is what it serves, whole and healthy. Reads only, quick."""

    @abstractmethod
    def step(self, state: StateT, inputs: InputsT, ctx: ReleaseContext) -> tuple[StateT, Step]:
        """Take the next step towards ``ctx.revision`` and return the state to remember.

        Return phase ABORTING to give up, REJECTED when nothing that serves was touched.
        """

    @abstractmethod
    def abort(self, state: StateT, inputs: InputsT, ctx: ReleaseContext) -> tuple[StateT, Step]:
        """Take the next step back, traffic first, until ROLLED_BACK (or REJECTED for a first release)."""

    @abstractmethod
    def status(self, ctx: ReleaseContext) -> Sequence[Serving]:
        """Ask the target what it serves."""

    def down(self, ctx: ReleaseContext) -> Sequence[str]:
        """Stop what this pipeline runs on the target and say, a line each, what was stopped."""
        return ()
