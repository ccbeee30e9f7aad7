"""What a user writes: the spec's models, its YAML with positions, its expressions and its JSON schema."""

from __future__ import annotations

from shipctl.spec.checks import stage_dependencies
from shipctl.spec.expressions import evaluate, has_expression, references
from shipctl.spec.load import LoadedSpec, load_soundly, load_spec
from shipctl.spec.models import (
    Approval,
    Budget,
    DataSource,
    Environment,
    Latency,
    Metadata,
    ModelSpec,
    Resources,
    Retry,
    SecretSource,
    Slo,
    Spec,
    StageSpec,
)
from shipctl.spec.problems import Keys, Location, Problem, Problems, near
from shipctl.spec.sandbox import ExpressionError
from shipctl.spec.schema import spec_schema
from shipctl.spec.units import Duration, Percentage, Rate, Size
from shipctl.spec.validation import add_validation_errors
from shipctl.spec.yaml import Document, load_document

__all__ = [
    "Approval",
    "Budget",
    "DataSource",
    "Document",
    "Duration",
    "Environment",
    "ExpressionError",
    "Keys",
    "Latency",
    "LoadedSpec",
    "Location",
    "Metadata",
    "ModelSpec",
    "Percentage",
    "Problem",
    "Problems",
    "Rate",
    "Resources",
    "Retry",
    "SecretSource",
    "Size",
    "Slo",
    "Spec",
    "StageSpec",
    "add_validation_errors",
    "evaluate",
    "has_expression",
    "load_document",
    "load_soundly",
    "load_spec",
    "near",
    "references",
    "spec_schema",
    "stage_dependencies",
]
