"""Stage `archive`: a package as one thing to hand on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shipctl.evidence.archives import write_oci, write_tar
from shipctl.evidence.package import read_manifest
from shipctl.stages.artifacts import ModelPackage, PackageArchive
from shipctl.stages.base import Stage, StageInputs, StageOptions, StageOutputs
from shipctl.stages.context import StageContext


class Options(StageOptions):
    """What stands below ``with:``."""

    format: Literal["tar", "oci"] = Field(
        default="tar",
        description="tar: one file. oci: the folder of an OCI image layout, which skopeo copies to any registry.",
    )
    compression: Literal["none", "gzip"] = Field(
        default="none", description="Weights hardly shrink, so the default is not to try."
    )


class Inputs(StageInputs):
    """What the stage takes."""

    package: ModelPackage


class Outputs(StageOutputs):
    """What the stage gives."""

    archive: PackageArchive


class Archive(Stage[Options, Inputs, Outputs]):
    """Write a package, signed or not, as a tar file or an OCI image layout; the same package gives the same bytes.

    Copy a layout to a registry by ``skopeo copy oci:FOLDER:VERSION docker://…``; `shipctl verify` reads both as they
    are.
    """

    api_version = 1

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Write it."""
        package, options = inputs.package, self.options
        manifest = read_manifest(package.root)
        if options.format == "tar":
            suffix = ".tar.gz" if options.compression == "gzip" else ".tar"
            target = ctx.workdir / f"{package.name}-{package.version}{suffix}"
            write_tar(package.root, target, compression=options.compression)
        else:
            target = ctx.workdir / "oci"
            write_oci(
                package.root,
                target,
                name=package.name,
                version=package.version,
                licenses=manifest.license,
                description=manifest.description,
                vendor=manifest.owner,
                compression=options.compression,
            )
        archive = PackageArchive.at(
            target, name=package.name, version=package.version, package=package.digest, format=options.format
        )
        return Outputs(archive=archive)
