"""What a spec says, as frozen pydantic models: the shape of the file, field by field.

What concerns one field is checked here; what concerns several places of the document (unknown stages, cycles,
undefined names) is checked in :mod:`shipctl.spec.checks`, where positions are known.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from shipctl.records import Record
from shipctl.signature import Signature, TensorSpec
from shipctl.spec.expressions import has_expression
from shipctl.spec.fields import (
    ID_PATTERN,
    Axis,
    Condition,
    EnvironmentVariable,
    Ids,
    Label,
    Name,
    Port,
    StageId,
    StageName,
    Text,
    Texts,
    Version,
    fault,
)
from shipctl.spec.units import Duration, Percentage, Rate, Size

MAX_VARIANTS = 256


def _attempts(value: Any) -> Any:
    return {"attempts": value} if isinstance(value, int) and not isinstance(value, bool) else value


class Metadata(Record):
    """What the pipeline is and whose it is."""

    name: Label = Field(description="Names the model where it is served, and its folder; a DNS label.")
    version: Version = Field(description="The semantic version of the model that this spec ships.")
    owner: Text | None = Field(None, description="The team or person to ask.")
    description: str | None = Field(None, description="One or two sentences for people.")
    labels: dict[str, str] = Field(
        default_factory=dict, description="Free key-value texts, passed on to targets."
    )


class Latency(Record):
    """Upper bounds on the latency of one request, by percentile."""

    p50: Duration | None = Field(None, description="Half of all requests are answered within this time.")
    p90: Duration | None = Field(None, description="90 % of all requests are answered within this time.")
    p95: Duration | None = Field(None, description="95 % of all requests are answered within this time.")
    p99: Duration | None = Field(None, description="99 % of all requests are answered within this time.")


class Slo(Record):
    """Service-level objectives: the one source for tests, analysis, alerts and dashboards."""

    latency: Latency = Field(
        default_factory=Latency, description="Upper bounds on the latency, by percentile."
    )
    error_rate: Percentage | None = Field(None, description="The largest share of requests that may fail.")
    throughput: Rate | None = Field(None, description="The requests per second that must be reached.")


class Budget(Record):
    """What optimisation and release may cost."""

    accuracy_drop: Percentage | None = Field(
        None, description="How much of the source model's metric a variant may lose, absolute."
    )
    rollback: Duration | None = Field(None, description="The longest time that going back may take.")


class ModelSpec(Record):
    """The source model."""

    uri: Text = Field(description="Where the model comes from, such as models/digits.py:build or model.onnx.")
    weights: Text | None = Field(
        None, description="The file with the weights, if they are not in the model itself."
    )
    files: Texts = Field((), description="Further files and glob patterns that the builder reads.")
    trust_pickle: bool = Field(
        False,
        description="Whether a file may be opened that can run any code then (a pickle); recorded with the model.",
    )
    inputs: tuple[TensorSpec, ...] = Field((), description="The tensors that a caller sends, in order.")
    outputs: tuple[TensorSpec, ...] = Field((), description="The tensors that a caller gets back, in order.")

    @property
    def signature(self) -> Signature | None:
        """Inputs and outputs together; None while one side is not declared."""
        return Signature(inputs=self.inputs, outputs=self.outputs) if self.inputs and self.outputs else None


class ImageReading(Record):
    """How images become tensors."""

    size: tuple[int, int] | None = Field(
        None, description="[height, width] in pixels to resize to; left out, what the model's input says."
    )
    layout: Literal["nchw", "nhwc"] = Field("nchw", description="Where the channels stand.")
    scale: float = Field(1 / 255, description="What 8-bit values are multiplied by.")
    mean: tuple[float, ...] = Field((), description="Per channel, taken off after scaling.")
    std: tuple[float, ...] = Field((), description="Per channel, divided by after that.")


class DataReading(Record):
    """How samples are read, where the file does not say it."""

    label: Text | None = Field(
        None, description="The column with the labels, in a .csv file; `label` if left out."
    )
    image: ImageReading = Field(
        ImageReading(), description="How images become tensors, for a folder of images."
    )


class DataSource(DataReading):
    """A data set and, if it is one that decides, its bound."""

    uri: Text = Field(
        description="Where the samples are: an .npz file of named arrays, a .csv file with a header, a folder of "
        "images (one folder per class), or a Python function that makes them (data/samples.py:calibration)."
    )
    files: Texts = Field((), description="Further files and glob patterns that the function reads.")
    metric: Text | None = Field(None, description="The metric computed on it, such as accuracy.")
    min: Percentage | None = Field(None, description="The smallest value of the metric that passes.")

    @property
    def reading(self) -> DataReading:
        """How its samples are read."""
        return DataReading(label=self.label, image=self.image)


class SecretSource(Record):
    """Where a secret is read from when a stage needs it; exactly one of the three."""

    env: EnvironmentVariable | None = Field(None, description="An environment variable.")
    file: Text | None = Field(None, description="A file, relative to the spec.")
    command: tuple[Text, ...] | None = Field(None, min_length=1, description="A command that prints it.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(value is not None for value in (self.env, self.file, self.command)) != 1:
            raise fault("a secret comes from exactly one place; write one of env, file and command")
        return self


class StoreSpec(Record):
    """Where published models, results of stages and the audit log are kept; without it, in `.shipctl/store`.

    Credentials are never written here. For S3 they are looked for, in this order, in `profile`, in the environment
    (AWS_ACCESS_KEY_ID and its kin, or MINIO_ACCESS_KEY), in the shared credentials file, in a web identity token or
    `role` (STS), and in the machine's metadata service.
    """

    uri: Text = Field(description="A folder, file:///path, or s3://bucket/prefix.")
    endpoint: Text | None = Field(
        None,
        description="S3 only: http(s)://host:port of the server; AWS by default (also: AWS_ENDPOINT_URL_S3).",
    )
    region: Text | None = Field(
        None, description="S3 only: the region (also: AWS_REGION); us-east-1 by default."
    )
    addressing: Literal["auto", "path", "virtual"] = Field(
        "auto", description="S3 only: whether the bucket stands in the path or in the host name."
    )
    ca: Text | None = Field(
        None,
        description="S3 only: a PEM file with the certificate authority of the server (also: AWS_CA_BUNDLE).",
    )
    profile: Text | None = Field(None, description="S3 only: a profile of the shared credentials file.")
    role: Text | None = Field(None, description="S3 only: the ARN of a role to assume by STS.")
    cache: bool = Field(
        True, strict=True, description="Whether results of stages are shared through it between runners."
    )


def _store(value: Any) -> Any:
    return {"uri": value} if isinstance(value, str) else value


class Environment(Record):
    """What differs where a release goes to."""

    vars: dict[Name, Any] = Field(
        default_factory=dict, description="Variables that replace those of the spec."
    )


class Retry(Record):
    """How often a stage that failed with an error is tried; a gate that said no is never asked again."""

    attempts: int = Field(1, ge=1, le=100, strict=True, description="How often the stage is tried in all.")
    delay: Duration = Field(Duration(1), description="The time before the second attempt.")
    backoff: float = Field(
        2.0, ge=1, le=100, strict=True, description="By how much the delay grows with each attempt."
    )


class Resources(Record):
    """What a stage takes from its machine while it runs."""

    cpu: float | None = Field(None, gt=0, strict=True, description="CPU cores.")
    gpu: int | None = Field(None, ge=0, strict=True, description="GPUs.")
    memory: Size | None = Field(None, description="Main memory.")
    disk: Size | None = Field(None, description="Free disk space.")
    labels: dict[str, str] = Field(
        default_factory=dict, description="What the machine must be, such as gpu: l4."
    )


class Approval(Record):
    """Who must agree before a release stage acts."""

    required: bool = Field(True, strict=True, description="Whether the stage waits for an approval.")
    roles: Texts = Field(
        (), description="The roles that may approve; none named means any role of the policy."
    )
    expires: Duration | None = Field(None, description="How long an approval holds.")


class StageSpec(Record):
    """One step of the pipeline."""

    id: StageId = Field(description="Names the stage in this spec; left out, it is the name under 'uses'.")
    uses: StageName = Field(description="The stage to run, by its installed name.")
    options: dict[str, Any] = Field(
        default_factory=dict, alias="with", description="The options of that stage."
    )
    needs: Ids | None = Field(
        None, description="The stages it takes its inputs from; left out, the one before it; [] for none."
    )
    inputs: dict[Name, Port] = Field(
        default_factory=dict,
        description="Decides which output feeds an input: 'stage', 'stage.output' or a list.",
    )
    when: Condition = Field(True, description="Whether the stage runs: a boolean or one expression.")
    retry: Annotated[Retry, BeforeValidator(_attempts, json_schema_input_type=Retry | int)] = Field(
        default_factory=Retry,
        description="How often the stage is tried: a number, or with delay and backoff.",
    )
    timeout: Duration | None = Field(None, description="The longest time that one attempt may take.")
    resources: Resources = Field(
        default_factory=Resources, description="What the stage takes from its machine."
    )
    matrix: dict[Name, Axis] = Field(
        default_factory=dict, description="Runs the stage once per combination of these values."
    )
    environment: Label | None = Field(None, description="The environment that a release stage releases to.")
    approval: Approval | None = Field(None, description="Who must agree before a release stage acts.")

    @model_validator(mode="before")
    @classmethod
    def _id_from_uses(cls, data: Any) -> Any:
        if isinstance(data, dict) and "id" not in data:
            uses = data.get("uses")
            if isinstance(uses, str) and (has_expression(uses) or re.fullmatch(ID_PATTERN, uses)):
                # an expression is refused under 'uses'; that its id is missing as well would be no help
                return {"id": "unnamed" if has_expression(uses) else uses, **data}
        return data

    @model_validator(mode="after")
    def _bounded_matrix(self) -> Self:
        variants = math.prod(len(axis) for axis in self.matrix.values())
        if variants > MAX_VARIANTS:
            raise fault(
                f"the matrix has {variants} combinations and may have {MAX_VARIANTS}; take values out"
            )
        return self


class Spec(Record):
    """A pipeline from a model to where it is served."""

    apiVersion: Literal["shipctl.dev/v1"] = Field(description="The version of this file format.")  # noqa: N815
    kind: Literal["Pipeline"] = Field(description="What the file describes.")
    metadata: Metadata = Field(description="Name, version and owner of what is shipped.")
    include: Texts = Field((), description="Partial specs that this one is laid over, relative to this file.")
    vars: dict[Name, Any] = Field(default_factory=dict, description="Variables for expressions.")
    env: tuple[EnvironmentVariable, ...] = Field(
        (), description="Environment variables that expressions may read."
    )
    secrets: dict[Name, SecretSource] = Field(
        default_factory=dict, description="Secrets, by where they come from."
    )
    store: Annotated[
        StoreSpec | None, BeforeValidator(_store, json_schema_input_type=StoreSpec | str | None)
    ] = Field(
        None, description="Where published models and shared results are kept: a URI, or with settings."
    )
    seed: int = Field(0, ge=0, lt=2**32, strict=True, description="The seed of everything random.")
    slo: Slo = Field(default_factory=Slo, description="Service-level objectives.")
    budget: Budget = Field(default_factory=Budget, description="How much accuracy and time may be lost.")
    model: ModelSpec | None = Field(None, description="The source model.")
    data: dict[Name, DataSource] = Field(default_factory=dict, description="Data sets, by what they are for.")
    stages: tuple[StageSpec, ...] = Field(min_length=1, description="The steps, in order.")
    environments: dict[Label, Environment] = Field(
        default_factory=dict, description="What differs where a release goes to; chosen with -e."
    )
