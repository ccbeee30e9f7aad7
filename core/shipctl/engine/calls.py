"""The call of a stage as it travels between shipctl and a worker: JSON, and the files that it names."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

from pydantic import Field

from shipctl.engine.ports import bundle, input_ports, output_ports
from shipctl.errors import PluginError
from shipctl.records import Record
from shipctl.stages.artifacts import Artifact
from shipctl.stages.base import Stage, StageInputs, StageOutputs
from shipctl.stages.context import Lineage, Objectives, StageContext


class Placed(Record):
    """An artifact and where its files lie on this machine."""

    kind: str = Field(description="`module:Class` of the artifact.")
    fields: dict[str, Any] = Field(description="The artifact's own JSON.")
    root: str = Field(description="Its file or folder.")

    @classmethod
    def of(cls, artifact: Artifact) -> Placed:
        """Describe an artifact that has files on this machine."""
        model = type(artifact)
        fields = json.loads(artifact.model_dump_json())
        return cls(kind=class_name(model), fields=fields, root=str(artifact.root))

    def artifact(self, declared: type[Artifact] | None = None) -> Artifact:
        """Return the artifact; ``declared`` saves importing its module by name."""
        model = declared if declared is not None else load_class(self.kind)
        made = model.model_validate(self.fields)
        assert isinstance(made, Artifact)  # noqa: S101  (for the type checker: load_class is not typed)
        return made.located(Path(self.root))


class Call(Record):
    """All that a worker needs to run a stage."""

    stage: str = Field(description="`module:Class` of the stage.")
    options: dict[str, Any] = Field(
        description="What stands below `with`, evaluated; may hold secrets, is never stored."
    )
    inputs: dict[str, list[Placed]] = Field(description="Artifacts by input name.")
    workdir: str = Field(description="The folder that the stage may write to.")
    seed: int = Field(description="The spec's seed.")
    threads: int = Field(description="CPU threads.")
    objectives: dict[str, Any] = Field(description="The blocks of the spec that the stage reads.")
    lineage: dict[str, Any] = Field(default_factory=dict, description="What is above it, if it reads that.")


class Answer(Record):
    """What came of a call."""

    outputs: dict[str, Placed] | None = Field(default=None, description="By output name, if it went well.")
    error: str | None = Field(default=None, description="One line, if not.")
    kind: str = Field(default="StageError", description="Class of the error in shipctl.errors.")
    trace: str = Field(default="", description="The traceback of an exception that no plugin should let out.")
    peak_memory: int | None = Field(
        default=None, description="Highest resident memory during the call, in bytes."
    )
    pid: int = Field(default_factory=os.getpid, description="The worker itself.")


def class_name(model: type) -> str:
    """Return `module:Class`."""
    return f"{model.__module__}:{model.__qualname__}"


def load_class(name: str) -> Any:
    """Import `module:Class`."""
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def call_stage(
    stage: Stage[Any, Any, Any], inputs: StageInputs, context: StageContext
) -> dict[str, Artifact]:
    """Run a stage and make sure that it returned what it declares.

    :raises PluginError: if it returned something else
    """
    made = stage.run(inputs, context)
    expected = type(stage).outputs_model
    name = type(stage).__qualname__
    if not isinstance(made, StageOutputs):
        message = f"{name}.run returned {type(made).__name__}, not {expected.__qualname__}"
        raise PluginError(message)
    ports = output_ports(type(stage))
    found = {key: getattr(made, key) for key in type(made).model_fields}
    surplus = sorted(set(found) - set(ports))
    if surplus:
        declared = ", ".join(ports) or "nothing"
        message = (
            f"{name}.run returned {', '.join(surplus)}, which it does not declare; it declares {declared}"
        )
        raise PluginError(message)
    for key, port in ports.items():
        if not isinstance(found.get(key), port.kinds):
            message = f"{name}.run returned no {port} as output {key!r}"
            raise PluginError(message)
    return found


def read_inputs(stage: type[Stage[Any, Any, Any]], placed: dict[str, list[Placed]]) -> StageInputs:
    """Return the inputs of a call as the stage's own model."""
    ports = input_ports(stage)
    return bundle(
        stage.inputs_model,
        ports,
        {name: tuple(item.artifact() for item in items) for name, items in placed.items()},
    )


def context_of(call: Call, log: Any) -> StageContext:
    """Return the context of a call."""
    return StageContext(
        workdir=Path(call.workdir),
        seed=call.seed,
        threads=call.threads,
        objectives=Objectives(**call.objectives),
        lineage=Lineage.model_validate(call.lineage),
        log=log,
    )
