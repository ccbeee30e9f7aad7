"""Stage `unpack`: model, repository and golden samples out of a package, as they went in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from shipctl.errors import GateError, StageError
from shipctl.evidence.contents import check_manifest, hash_files, listing
from shipctl.evidence.package import PackageManifest, read_manifest
from shipctl.stages.artifacts import Artifact, Dataset, ModelPackage, OnnxModel, TritonRepository
from shipctl.stages.base import NoOptions, Stage, StageInputs, StageOutputs
from shipctl.stages.context import StageContext
from shipctl.store.files import place_file

ArtifactT = TypeVar("ArtifactT", bound=Artifact)

_ADVICE = {
    "repository": "put `triton-config` into the `needs` of its `package` stage",
    "data.golden": "add `data.golden` to the spec that packages it",
}


class Inputs(StageInputs):
    """What the stage takes."""

    package: ModelPackage


class Outputs(StageOutputs):
    """What the stage gives."""

    model: OnnxModel
    repository: TritonRepository
    golden: Dataset


class Unpack(Stage[NoOptions, Inputs, Outputs]):
    """Take model, repository and golden samples out of a package, so that they can be released.

    They have the digests that they had when they were packaged. Every file of the package is compared with what
    package.json says; signatures are looked at by `shipctl verify` and by the policy of the project.
    """

    api_version = 1

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Compare every file with package.json, then lay out the three."""
        package = inputs.package
        manifest = read_manifest(package.root)
        label = manifest.reference
        if (manifest.name, manifest.version) != (package.name, package.version):
            message = f"package.json says {label}, and the package is called {package.name}@{package.version}"
            raise GateError(f"{message}; take it from where it was published again")
        names, _ = listing(package.root, label)
        check_manifest(manifest, hash_files(package.root, names, label), label)
        model = _take(OnnxModel, "model", manifest, package, ctx.workdir)
        if model.digest != package.model:
            message = f"{label} holds the model {model.digest[:12]} and says that it is {package.model[:12]}"
            raise GateError(f"{message}; take it from where it was published again")
        repository = _take(TritonRepository, "repository", manifest, package, ctx.workdir)
        golden = _take(Dataset, "data.golden", manifest, package, ctx.workdir)
        return Outputs(model=model, repository=repository, golden=golden)


def _take(
    kind: type[ArtifactT], role: str, manifest: PackageManifest, package: ModelPackage, workdir: Path
) -> ArtifactT:
    """Lay out one artifact below ``workdir`` and return it.

    :raises StageError: if the package has none of that role
    :raises GateError: if what package.json says of it does not hold
    """
    item = manifest.artifact(role)
    if item is None:
        message = f"{manifest.reference} has no {role.removeprefix('data.')}"
        raise StageError(f"{message}; {_ADVICE.get(role, 'package it again')}, and package it again")
    fields: dict[str, Any] = {key: value for key, value in item.manifest.items() if key != "kind"}
    try:
        artifact = kind.model_validate(fields)
    except ValidationError as exc:
        message = (
            f"{manifest.reference}: what package.json says of {role} is no {kind.kind}; package it again"
        )
        raise GateError(message) from exc
    digests = {entry.path: entry.sha256 for entry in manifest.files}
    target = workdir / role.removeprefix("data.")
    for entry in artifact.files:
        path = f"{item.path}/{entry.path}"
        if digests.get(path) != entry.sha256:  # so the path is one of a file that is really there
            message = (
                f"{manifest.reference}: {role} names {path!r}, which the package does not have like that"
            )
            raise GateError(f"{message}; package it again")
        place_file(package.root / path, target / entry.path)
    if artifact.digest != item.digest:
        message = (
            f"{manifest.reference}: {role} is {artifact.digest[:12]}, package.json says {item.digest[:12]}"
        )
        raise GateError(f"{message}; package it again")
    return artifact.located(target)
