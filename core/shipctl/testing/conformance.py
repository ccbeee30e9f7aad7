"""The conformance kit: what every stage promises, as tests that a plugin author inherits."""
# ruff: noqa: D102 - these are tests, though they are shipped: their names say what they check

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pytest

from shipctl.engine.ports import Port, input_ports
from shipctl.stages.artifacts import Artifact, Report
from shipctl.stages.base import Stage, StageInputs, StageOutputs
from shipctl.stages.context import JudgeContext, Objectives, StageContext
from shipctl.stages.registry import Registry, StageClass
from shipctl.stages.verdicts import Outcome, Verdict
from shipctl.testing.checks import frameworks_imported_by, static_problems
from shipctl.testing.samples import sample_for, sealed

_UNKNOWN = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class StageConformance:
    """Subclass it, name the stage, and pytest checks what shipctl relies on.

    ::

        class TestMyStage(StageConformance):
            stage = "my-stage"

    Override :attr:`options` where the stage needs some, :meth:`inputs` where it takes artifacts of its own
    kinds, and :attr:`objectives` where ``run`` or ``judge`` look at the spec's numbers. The stage runs twice, with the
    same inputs (a measurement, which differs from run to run, once), and all tests look at these runs.
    """

    stage: ClassVar[str]
    """The name of its entry point."""
    options: ClassVar[Mapping[str, Any]] = {}
    """What would stand below ``with:``."""
    objectives: ClassVar[Objectives] = Objectives()
    _done: ClassVar[dict[type, _Runs]] = {}

    def inputs(self, tmp_path: Path) -> Mapping[str, Artifact | list[Artifact] | None]:
        """Return the inputs to run with, by name; tiny real ones for the kinds that shipctl brings."""
        found: dict[str, Artifact | list[Artifact] | None] = {}
        for name, port in input_ports(self._class()).items():
            artifact = self._sample(name, port, tmp_path)
            found[name] = [artifact] if port.many and artifact is not None else artifact
        return found

    # -- what it says about itself -------------------------------------------------------------------------

    def test_entry_point_names_a_stage_of_this_api_version(self) -> None:
        assert self._class().api_version == Registry().load(self.stage).api_version

    def test_declaration_is_complete(self) -> None:
        """Docstring, a description per option, a JSON schema, typed inputs and outputs, consistent attributes."""
        assert static_problems(self._class()) == []

    def test_options_are_accepted(self) -> None:
        self._class().options_model.model_validate(dict(self.options))

    def test_unknown_option_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no-such-option"):
            self._class().options_model.model_validate({**self.options, "no-such-option": 1})

    def test_module_imports_no_framework(self) -> None:
        """Frameworks belong inside functions: a plan must not wait for them, nor need them."""
        assert frameworks_imported_by(self._class().__module__) == []

    # -- what it does --------------------------------------------------------------------------------------

    def test_same_inputs_give_the_same_outputs(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        if self._transform().measurement:
            pytest.skip("a measurement differs from run to run")
        runs = self._runs(tmp_path_factory)
        assert _digests(runs.once.outputs) == _digests(runs.watched.outputs), (
            "the outputs of two runs with the same inputs differ"
        )

    def test_declared_outputs_lie_in_the_work_directory(
        self, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        runs = self._runs(tmp_path_factory)
        for name, artifact in _artifacts(runs.once.outputs).items():
            root = artifact.root.resolve()
            passed = any(artifact.digest == given.digest for given in _flat(runs.inputs))
            assert passed or root.is_relative_to(runs.once.workdir.resolve()), (
                f"output {name!r} lies at {root}"
            )
            assert artifact.files, f"output {name!r} has no files"

    def test_nothing_else_is_written(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        watched = self._runs(tmp_path_factory).watched
        assert watched.stray == [], (
            f"files outside of ctx.workdir were opened for writing: {', '.join(watched.stray)}"
        )
        assert watched.inputs_after == watched.inputs_before, "an input was changed"

    def test_metrics_are_declared(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        from fnmatch import fnmatchcase

        declared = self._transform().metrics
        outputs = self._runs(tmp_path_factory).once.outputs
        found = [name for report in _reports(outputs) for name in report.metrics]
        undeclared = [name for name in found if not any(fnmatchcase(name, pattern) for pattern in declared)]
        assert undeclared == [], f"these metrics are not in the stage's `metrics`: {', '.join(undeclared)}"

    @pytest.mark.parametrize("value", [*_UNKNOWN, "missing"])
    def test_gates_fail_closed(self, tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
        """A metric that is NaN, infinite or missing never passes."""
        outputs = self._runs(tmp_path_factory).once.outputs
        if not any(report.metrics for report in _reports(outputs)):
            pytest.skip("its reports have no metrics")
        judged = self._judge(outputs)
        if not judged:
            pytest.skip("it decides nothing with these options")
        verdicts = self._judge(_with_metrics(outputs, value))
        assert verdicts, "gates vanished together with their metrics"
        known = {name for report in _reports(outputs) for name in report.metrics}
        passing = [
            v.gate for v in verdicts if v.outcome is Outcome.PASS and (v.metric is None or v.metric in known)
        ]
        assert passing == [], f"these gates pass a metric that is {value}: {', '.join(passing)}"

    # -- helpers -------------------------------------------------------------------------------------------

    def _class(self) -> StageClass:
        return Registry().load(self.stage)

    def _transform(self) -> type[Stage[Any, Any, Any]]:
        stage = self._class()
        if not issubclass(stage, Stage):
            pytest.skip("a release stage changes a system outside; test it against that system")
        missing = [hint for module, hint in stage.requires.items() if not _importable(module)]
        if missing:
            pytest.skip(f"needs {', '.join(missing)}")
        return stage

    def _sample(self, name: str, port: Port, tmp_path: Path) -> Artifact | None:
        folder = tmp_path / "inputs" / name
        artifact = sample_for(port.kinds, name, folder)
        if artifact is None and not port.optional:
            pytest.skip(
                f"there is no sample of {port} for input {name!r}; override `inputs` to run the stage"
            )
        return artifact

    def _inputs(self, tmp_path: Path) -> StageInputs:
        return self._class().inputs_model(**dict(self.inputs(tmp_path)))

    def _runs(self, tmp_path_factory: pytest.TempPathFactory) -> _Runs:
        """Return the runs that the tests of this class look at: a stage may take long, and two are enough."""
        stage = self._transform()
        if type(self) not in self._done:
            folder = tmp_path_factory.mktemp("conformance")
            self._done[type(self)] = _Runs(
                folder, self._inputs(folder), self._run, twice=not stage.measurement
            )
        return self._done[type(self)]

    def _run(self, tmp_path: Path, name: str, given: StageInputs) -> StageOutputs:
        stage = self._transform()
        workdir = tmp_path / name
        scratch = tmp_path / "tmp"
        workdir.mkdir(exist_ok=True)
        scratch.mkdir(exist_ok=True)
        context = StageContext(workdir=workdir, objectives=self.objectives, log=_ignore)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(workdir)
            patch.setenv("TMPDIR", str(scratch))
            patch.setattr("tempfile.tempdir", str(scratch))
            instance = stage(stage.options_model.model_validate(dict(self.options)))
            outputs = instance.run(given, context)
        assert isinstance(outputs, stage.outputs_model), f"run returned {type(outputs).__name__}"
        return type(outputs)(**{name: sealed(item) for name, item in _artifacts(outputs).items()})

    def _judge(self, outputs: StageOutputs) -> list[Verdict]:
        stage = self._transform()
        instance = stage(stage.options_model.model_validate(dict(self.options)))
        subjects = [report.subject for report in _reports(outputs)]
        return list(instance.judge(outputs, JudgeContext(self.objectives, subjects[0] if subjects else None)))


@dataclass(frozen=True)
class _Run:
    """What a run gave and, where it was watched, what it touched."""

    workdir: Path
    outputs: StageOutputs
    stray: list[str] = field(default_factory=list)
    """Files elsewhere that it opened for writing."""
    inputs_before: list[str] = field(default_factory=list)
    inputs_after: list[str] = field(default_factory=list)


class _Runs:
    """Two runs of a stage with the same inputs, each made when a test asks for it; one that fails is made again.

    Not ``twice``, both are one: nobody compares them.
    """

    def __init__(
        self,
        folder: Path,
        inputs: StageInputs,
        run: Callable[[Path, str, StageInputs], StageOutputs],
        *,
        twice: bool,
    ) -> None:
        self.inputs = inputs
        self._folder, self._run, self._twice = folder, run, twice

    @cached_property
    def once(self) -> _Run:
        if not self._twice:
            return self.watched
        return _Run(self._folder / "once", self._run(self._folder, "once", self.inputs))

    @cached_property
    def watched(self) -> _Run:
        folder = self._folder
        before = [sealed(artifact).digest for artifact in _flat(self.inputs)]
        with _written_files() as written:
            outputs = self._run(folder, "watched", self.inputs)
        allowed = tuple(f"{path.resolve()}{os.sep}" for path in (folder / "watched", folder / "tmp"))
        stray = sorted(path for path in written if not path.startswith(allowed) and not _is_harmless(path))
        after = [sealed(artifact).digest for artifact in _flat(self.inputs)]
        return _Run(folder / "watched", outputs, stray, before, after)


def _ignore(_: str) -> None:
    """Take a log line of a stage under test."""


def _importable(module: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent of a dotted name
        return False


def _artifacts(outputs: StageOutputs) -> dict[str, Artifact]:
    return {name: getattr(outputs, name) for name in type(outputs).model_fields}


def _reports(outputs: StageOutputs) -> list[Report]:
    return [artifact for artifact in _artifacts(outputs).values() if isinstance(artifact, Report)]


def _digests(outputs: StageOutputs) -> dict[str, str]:
    return {name: artifact.digest for name, artifact in _artifacts(outputs).items()}


def _flat(inputs: StageInputs) -> Iterator[Artifact]:
    for name in type(inputs).model_fields:
        value = getattr(inputs, name, None)
        yield from (
            value if isinstance(value, list | tuple) else [value] if isinstance(value, Artifact) else []
        )


def _with_metrics(outputs: StageOutputs, value: str) -> StageOutputs:
    """Return the outputs with every metric of every report replaced, or taken out."""
    changed: dict[str, Artifact] = {}
    for name, artifact in _artifacts(outputs).items():
        if isinstance(artifact, Report):
            metrics = {} if value == "missing" else dict.fromkeys(artifact.metrics, _UNKNOWN[value])
            changed[name] = artifact.model_copy(update={"metrics": metrics}).located(artifact.root)
        else:
            changed[name] = artifact
    return type(outputs)(**changed)


def _is_harmless(path: str) -> bool:
    return path.startswith(("/dev/", "/proc/")) or "__pycache__" in path


_watchers: list[set[str]] = []
_hooked = False


@contextmanager
def _written_files() -> Iterator[set[str]]:
    """Yield a set that collects the paths which this process opens for writing, by Python's audit events.

    What native code writes is not seen. An audit hook stays for the life of the process, so there is one.
    """
    global _hooked  # noqa: PLW0603
    if not _hooked:
        sys.addaudithook(_on_audit)
        _hooked = True
    seen: set[str] = set()
    _watchers.append(seen)
    try:
        yield seen
    finally:
        _watchers.remove(seen)


def _on_audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watchers or event != "open":
        return
    path, mode, flags = arguments
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if not isinstance(path, str | os.PathLike):
        return  # a descriptor, which was opened by its path before
    writing = any(letter in mode for letter in "wax+") if isinstance(mode, str) else False
    if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        writing = True
    if writing:
        for seen in _watchers:
            seen.add(os.path.realpath(path))
