"""The package: a folder that holds a model and everything that is known about it.

    package.json              what is in it (PackageManifest); names every other file but the two signatures
    model/…                   the model's own files
    repository/…              a Triton model repository, if there is one
    data/golden/…             golden samples, if there are any (any data set of the spec may be taken along)
    processing/…              pre- and post-processing
    requirements.txt  LICENSE  MODEL_CARD.md  CHECKLIST.md
    evidence/provenance.json  in-toto statement v1 with SLSA provenance v1
    evidence/ml-bom.cdx.json  CycloneDX ML-BOM
    evidence/checklist.json  evidence/gates.json  evidence/approvals.json  evidence/reports/…
    evidence/drift-reference.json
    evidence/provenance.dsse.json   added by `sign`: the statement in a DSSE envelope
    model.sig                       added by `sign`: OpenSSF model signature over all other files

Everything is content: no time, host or path of the machine that made it is in the files, except where the
provenance has to say it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from shipctl.errors import GateError
from shipctl.records import Record
from shipctl.signature import Signature
from shipctl.stages.artifacts import FileEntry

MANIFEST = "package.json"
SIGNATURE = "model.sig"
PROVENANCE = "evidence/provenance.json"
SIGNED_PROVENANCE = "evidence/provenance.dsse.json"
ML_BOM = "evidence/ml-bom.cdx.json"
CHECKLIST = "evidence/checklist.json"
GATES = "evidence/gates.json"
APPROVALS = "evidence/approvals.json"
DRIFT_REFERENCE = "evidence/drift-reference.json"
REPORTS = "evidence/reports"
ADDED_BY_SIGNING = frozenset({SIGNATURE, SIGNED_PROVENANCE})
FORMAT: Final = "shipctl.dev/package-v1"


class PackagedArtifact(Record):
    """An artifact of the pipeline inside the package, with all that is needed to hand it to a stage again."""

    role: str = Field(description="`model`, `repository`, `data.<name>` or `report.<n>`.")
    path: str = Field(description="Its folder in the package.")
    digest: str = Field(description="The artifact's digest.")
    manifest: dict[str, Any] = Field(
        description="The artifact's manifest, as `Artifact.manifest()` gives it."
    )


class PackageManifest(Record):
    """`package.json`."""

    format: Literal["shipctl.dev/package-v1"] = Field(default=FORMAT, description="Format and its version.")
    name: str = Field(description="The model's name.")
    version: str = Field(description="Its semantic version.")
    owner: str | None = Field(default=None, description="The team or person to ask.")
    description: str | None = Field(default=None, description="What the model does.")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels of the spec.")
    license: str | None = Field(default=None, description="SPDX licence expression of the model.")
    signature: Signature = Field(description="Inputs and outputs of the model.")
    metrics: dict[str, float] = Field(
        default_factory=dict, description="What was measured of the packaged model, in base units."
    )
    calibration: dict[str, str] = Field(
        default_factory=dict, description="Data set used for calibration or training, name to digest."
    )
    artifacts: tuple[PackagedArtifact, ...] = Field(description="What can be taken out again, `model` first.")
    files: tuple[FileEntry, ...] = Field(
        description="Every file but package.json, model.sig and evidence/provenance.dsse.json, by path."
    )

    @property
    def reference(self) -> str:
        """NAME@VERSION."""
        return f"{self.name}@{self.version}"

    def artifact(self, role: str) -> PackagedArtifact | None:
        """Return the artifact of a role, if it is there."""
        return next((item for item in self.artifacts if item.role == role), None)


def read_manifest(folder: Path) -> PackageManifest:
    """Return the manifest of a package that lies in a folder; nothing is verified.

    :raises GateError: if there is none, or it cannot be read
    """
    path = folder / MANIFEST
    try:
        return PackageManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        message = f"{folder} is no package: it has no {MANIFEST}"
        raise GateError(message) from None
    except ValidationError as exc:
        message = f"{path} is not a package manifest of this version of shipctl ({exc.error_count()} errors)"
        raise GateError(message) from exc
