"""Runs one transform stage: lays out its inputs, calls it here or in a worker, publishes what it made."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shipctl.engine.calls import Call, Placed, call_stage, class_name, context_of
from shipctl.engine.fingerprint import Components, fingerprint
from shipctl.engine.graph import Node, Origin
from shipctl.engine.options import complete_options
from shipctl.engine.pipeline import Pipeline
from shipctl.engine.ports import bundle, input_ports, output_ports
from shipctl.engine.secrets import Secrets
from shipctl.engine.walk import NodeEnd, Ready, Walk, expiry
from shipctl.engine.workers import WorkerPool, disk_problem
from shipctl.errors import CorruptArtifactError, ShipctlError, StageError
from shipctl.spec import StageSpec
from shipctl.stages.artifacts import Artifact
from shipctl.stages.base import Stage, StageOptions
from shipctl.stages.context import Lineage
from shipctl.store.local import Result, Stamp


class DamagedInputError(Exception):
    """A file of an input is not what its digest says; its origin has to be made again."""

    def __init__(self, origin: Origin, error: CorruptArtifactError) -> None:
        super().__init__(str(error))
        self.origin = origin
        self.error = error


def empty(folder: Path) -> None:
    """Remove everything in a folder, which need not exist."""
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            Path(entry.path).unlink()


def runs_inline(stage: type[Stage[Any, Any, Any]], spec: StageSpec) -> bool:
    """Whether a stage runs in shipctl's own process: one with a timeout or an environment of its own cannot."""
    return stage.isolation == "inline" and spec.timeout is None and not stage.requirements


@dataclass(frozen=True)
class Executor:
    """What all stages of a run share."""

    pipeline: Pipeline
    pool: WorkerPool
    secrets: Secrets
    workdir: Path

    def options(self, node: Node, walk: Walk) -> StageOptions:
        """Return the options of a node, complete with what other stages measured and with secrets.

        :raises SpecError: if they are wrong after all
        """
        planned = self.pipeline.options[node.id]
        stages = walk.stages_scope() if planned.later else {}
        return complete_options(node, planned, self.pipeline.loaded, stages, self.secrets)

    def open_inputs(self, ready: Ready, folder: Path) -> dict[str, tuple[Artifact, ...]]:
        """Lay out verified inputs below ``folder``, taking what the spec brings into the store first.

        :raises DamagedInputError: if the store has wrong bytes
        """
        opened: dict[str, tuple[Artifact, ...]] = {}
        store = self.pipeline.store
        for name, items in ready.inputs.items():
            placed = []
            for index, (artifact, origin) in enumerate(zip(items, ready.origins[name], strict=True)):
                source = self.pipeline.origin_artifact(origin)
                if source is not None and source.places and not store.has_files(artifact.files):
                    for entry in artifact.files:
                        store.put(source.places[entry.path], sha256=entry.sha256)
                try:
                    placed.append(
                        store.view(artifact, folder / name / (str(index) if len(items) > 1 else ""))
                    )
                except CorruptArtifactError as exc:
                    raise DamagedInputError(origin, exc) from exc
            opened[name] = tuple(placed)
        return opened

    def run(
        self,
        node: Node,
        ready: Ready,
        parts: Components,
        options: StageOptions,
        lineage: Lineage | None,
        log: Callable[[str], None],
    ) -> NodeEnd:
        """Run a transform stage once; ``lineage`` is what is above it, for one that reads that.

        :raises DamagedInputError: if an input has to be made again
        :raises ShipctlError: if the stage failed
        """
        assert issubclass(node.cls, Stage)  # noqa: S101  (the scheduler sends no releases)
        started = time.monotonic()
        inline = runs_inline(node.cls, node.spec)
        # inline stages run one at a time, so they share a folder that is emptied between them
        folder = self.workdir / ("inline" if inline else node.folder)
        workdir = folder / "out"
        if not inline:
            shutil.rmtree(folder, ignore_errors=True)
        if not workdir.is_dir():
            workdir.mkdir(parents=True)
        try:
            inputs = self.open_inputs(ready, folder / "in")
            known = self.pipeline.store.stamps(item for items in inputs.values() for item in items)
            made, peak = self._call(node.cls, node, options, inputs, lineage, workdir, log)
            outputs, passed = self._publish(made, inputs, workdir, known)
            result = Result(
                fingerprint=fingerprint(parts),
                uses=node.spec.uses,
                outputs={name: item.manifest() for name, item in outputs.items()},
                passed=passed,
                created=time.time(),
                seconds=time.monotonic() - started,
                peak_memory=peak,
            )
            if node.cls.measurement:  # only run again when the one there is too old, or answers nothing
                self.pipeline.store.drop_result(result.fingerprint)
            kept = self.pipeline.store.save_result(result)
            if kept is not result:  # somebody was first; what counts is what is in the store
                ports = output_ports(node.cls)
                outputs = {
                    name: self.pipeline.store.artifact(ports[name].kinds[0], body)
                    for name, body in kept.outputs.items()
                }
            if not inline:
                self.pipeline.store.sync()
        finally:
            if inline:
                for port in input_ports(node.cls):
                    empty(folder / "in" / port)
                empty(workdir)
            else:
                shutil.rmtree(folder, ignore_errors=True)
        return NodeEnd(
            "done", outputs=outputs, fingerprint=kept.fingerprint, components=parts,
            seconds=time.monotonic() - started, peak_memory=peak, expires=expiry(node, kept),
        )  # fmt: skip

    def _call(
        self,
        cls: type[Stage[Any, Any, Any]],
        node: Node,
        options: StageOptions,
        inputs: dict[str, tuple[Artifact, ...]],
        lineage: Lineage | None,
        workdir: Path,
        log: Callable[[str], None],
    ) -> tuple[dict[str, Artifact], int | None]:
        spec = node.spec
        disk = int(spec.resources.disk) if spec.resources.disk is not None else None
        goals = self.pipeline.objectives
        call = Call.model_construct(
            stage=class_name(cls),
            options={},
            inputs={},
            workdir=str(workdir),
            seed=self.pipeline.loaded.spec.seed,
            threads=max(1, int(spec.resources.cpu or 1)),
            objectives={name: getattr(goals, name) for name in cls.reads if name != "lineage"},
            lineage=lineage.model_dump(mode="json") if lineage is not None else {},
        )
        if runs_inline(cls, spec):
            made = _inline(cls, options, inputs, call, log)
            problem = disk_problem(workdir, disk)
            if problem:
                raise StageError(problem)
            return made, None
        placed = {name: [Placed.of(item) for item in items] for name, items in inputs.items()}
        call = call.model_copy(update={"options": options.model_dump(mode="json"), "inputs": placed})
        answer = self.pool.run(
            call,
            python=self._python(cls, spec.uses, log),
            fresh=cls.measurement,
            log=log,
            timeout=float(spec.timeout) if spec.timeout is not None else None,
            disk=disk,
        )
        ports = output_ports(cls)
        return {
            name: item.artifact(ports[name].kinds[0]) for name, item in (answer.outputs or {}).items()
        }, answer.peak_memory

    @staticmethod
    def _python(stage: type[Stage[Any, Any, Any]], uses: str, log: Callable[[str], None]) -> str:
        if not stage.requirements:
            return sys.executable
        from shipctl.engine.isolation import stage_environment

        return str(stage_environment(uses, stage, log))

    def _publish(
        self,
        made: dict[str, Artifact],
        inputs: dict[str, tuple[Artifact, ...]],
        workdir: Path,
        known: dict[Stamp, str],
    ) -> tuple[dict[str, Artifact], dict[str, str]]:
        given = (
            {item.digest for items in inputs.values() for item in items}
            if any(a.files for a in made.values())
            else set()
        )
        outputs: dict[str, Artifact] = {}
        passed: dict[str, str] = {}
        forbidden = self.secrets.forbidden()
        for name, item in made.items():
            if item.files and item.digest in given:
                outputs[name] = item
                passed[name] = item.digest
            else:
                outputs[name] = self.pipeline.store.publish(item, workdir, forbidden, known)
        return outputs, passed


def _inline(
    cls: type[Stage[Any, Any, Any]],
    options: StageOptions,
    inputs: dict[str, tuple[Artifact, ...]],
    call: Call,
    log: Callable[[str], None],
) -> dict[str, Artifact]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return call_stage(
                cls(options), bundle(cls.inputs_model, input_ports(cls), inputs), context_of(call, log)
            )
    except ShipctlError:
        raise
    except (Exception, SystemExit) as exc:  # a plugin may raise anything; that is its failure, not the run's
        raise StageError(f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__) from exc
    finally:
        for line in said.getvalue().splitlines():
            log(line)
