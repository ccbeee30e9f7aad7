"""`shipctl pull`."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.packages import trust_options
from shipctl.cli.stores import store_options
from shipctl.cli.types import PATH
from shipctl.errors import SpecError

if TYPE_CHECKING:
    from shipctl.evidence.verify import Verified


@click.command("pull")
@click.argument("what", metavar="URI|RELEASE")
@click.option(
    "-o", "--output", "target", metavar="PATH", type=PATH, help="Where to; NAME-VERSION, here, by default."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["directory", "tar", "oci"]),
    default="directory",
    show_default=True,
    help="A folder, a tar file, or the folder of an OCI image layout.",
)
@trust_options
@store_options
@json_option
@common_options
def command(what: str, target: Path | None, form: str, **options: Any) -> None:
    """Take a published package out of a store, verified.

    WHAT is a release of the registry (NAME@VERSION, NAME@ALIAS) or a package in a store
    (s3://bucket/prefix/NAME@VERSION). It is verified against the keys that are given, or else the policy; without
    either, its bytes are compared with their digests, and that is said.
    """
    from shipctl.cli.documents.packages import PullDocument
    from shipctl.cli.packages import laid_out, named, store_of
    from shipctl.cli.stores import chosen_project
    from shipctl.evidence.package import read_manifest

    output = Output.current()
    spec = options["spec"]
    project = chosen_project(spec).root
    meant = named(what)
    if meant.path is not None:
        raise SpecError(f"{what} is on this machine already; name a release, such as digits@1.4.0")
    place = store_of(meant, options["store"], spec, options["environment"], options["overrides"])
    with laid_out(meant, place, project) as package:
        found = _verified(package.path, package.label, package.expect, options, project)
        manifest = read_manifest(package.path)
        goal = target or Path(f"{manifest.name}-{manifest.version}{'.tar' if form == 'tar' else ''}")
        _write(package.path, goal, form, manifest.name, manifest.version)
    if package.retired:
        output.complain(f"{manifest.reference} was retired", label="warning")
    who = (
        f"signed by {found.signer}"
        if found is not None
        else "its signature was not verified: nobody is trusted here"
    )
    output.result(f"{manifest.reference} is in {goal}, {who}")
    output.document(
        PullDocument(what=what, path=str(goal), format=form, reference=manifest.reference, package=found)
    )


def _verified(
    path: Path, label: str, expect: str | None, options: dict[str, Any], project: Path
) -> Verified | None:
    from shipctl.cli.packages import trust_of
    from shipctl.evidence.policy import find_policy
    from shipctl.evidence.verify import verify_package

    given = options["keys"] or options["certificates"] or options["identities"] or options["policy"]
    policy = None if given else find_policy(project)
    if not given and (policy is None or not policy.trust):
        return None
    trust = trust_of(
        options["keys"], options["certificates"], options["identities"], options["policy"], project
    )
    return verify_package(path, trust, expect=expect, at=time.time(), label=label)


def _write(folder: Path, goal: Path, form: str, name: str, version: str) -> None:
    """Put the package where it is to go, whole or not at all.

    :raises SpecError: if something is there, or it cannot be written
    """
    from shipctl.evidence.archives import write_oci, write_tar

    if goal.exists() or goal.is_symlink():
        raise SpecError(f"{goal} exists; choose another place with -o")
    try:
        goal.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=goal.absolute().parent, prefix=".pull-") as name_of_twin:
            twin = Path(name_of_twin) / "package"
            if form == "tar":
                write_tar(folder, twin)
            elif form == "oci":
                write_oci(folder, twin, name=name, version=version)
            else:
                shutil.copytree(folder, twin, copy_function=shutil.copyfile)
            twin.rename(goal)
    except OSError as exc:
        raise SpecError(f"cannot write {goal}: {exc.strerror}; choose another place with -o") from exc
