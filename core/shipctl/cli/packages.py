"""What a command line means by a package: a path, a package in a store, or a release by name."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

import click

from shipctl.cli.types import PATH
from shipctl.errors import SpecError

if TYPE_CHECKING:
    from shipctl.evidence.verify import Trust
    from shipctl.spec.models import StoreSpec
    from shipctl.store.depot import Depot
    from shipctl.store.log import Heads

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
_DIGEST = re.compile(r"[0-9a-f]{64}")
_REGISTRY = "registry:/"


def trust_options(command: CommandT) -> CommandT:
    """Add what says who is trusted: ``--key``, ``--certificates``, ``--identity``, ``--policy``."""
    for decorate in (
        click.option(
            "--key",
            "keys",
            metavar="FILE",
            type=PATH,
            multiple=True,
            help="Trust this public key; repeatable.",
        ),
        click.option(
            "--certificates",
            metavar="FILE",
            type=PATH,
            multiple=True,
            help="Trust who is certified by these root certificates; repeatable.",
        ),
        click.option(
            "--identity",
            "identities",
            metavar="PATTERN",
            multiple=True,
            help="With --certificates: only who has this name (subject, e-mail, DNS name, URI); repeatable.",
        ),
        click.option(
            "--policy",
            metavar="FILE",
            type=PATH,
            help="Trust who this policy trusts; shipctl-policy.yaml by default.",
        ),
    )[::-1]:
        command = decorate(command)
    return command


@dataclass(frozen=True)
class Given:
    """A package that lies on this machine."""

    path: Path
    label: str
    """What to call it in messages."""
    expect: str | None = None
    """NAME@VERSION that it has to be, where it was asked for by name."""
    digest: str | None = None
    """Digest that the store or the registry has for it."""
    retired: bool = False
    """Whether it was taken out of use."""


@dataclass(frozen=True)
class Named:
    """What a person wrote for a package."""

    text: str
    path: Path | None = None
    """Of something on this machine."""
    store: str | None = None
    """The store's URI, if it is in the text."""
    reference: str = ""
    """NAME@VERSION, NAME@ALIAS, NAME, or a package's digest in the store."""


def named(text: str) -> Named:
    """Return what ``text`` means: a path, STORE/NAME@VERSION, STORE/NAME@ALIAS, STORE/DIGEST, or a release by name.

    :raises SpecError: for a URI that is none of these
    """
    if text.startswith("file://"):
        path = Path(unquote(urlsplit(text).path))
        if path.exists():
            return Named(text, path)
    if text.startswith(_REGISTRY):
        return Named(text, reference=text.removeprefix(_REGISTRY).strip("/"))
    if "://" in text:
        store, _, reference = text.rstrip("/").rpartition("/")
        if store.endswith(("/", ":")) or not ("@" in reference or _DIGEST.fullmatch(reference)):
            raise SpecError(
                f"{text} names no package; write the store's URI and then NAME@VERSION, NAME@ALIAS or a package's "
                "digest, such as s3://models/prod/digits@1.4.0"
            )
        return Named(text, store=store, reference=reference)
    path = Path(text)
    looks_so = "/" in text or path.suffix in {".tar", ".tgz", ".gz"}
    return Named(text, path) if looks_so or path.exists() else Named(text, reference=text)


@contextmanager
def laid_out(what: Named, store: tuple[StoreSpec, Path] | None, root: Path) -> Iterator[Given]:
    """Yield the package that is meant; what is in a store is fetched to a folder that is removed afterwards.

    ``store`` is the store with the folder that relative paths in it are relative to (not needed for a path), ``root``
    the project's folder.

    :raises SpecError: if there is no such package
    :raises StoreError: if the store cannot be reached or has wrong bytes
    """
    if what.path is not None or store is None:
        yield Given(what.path or Path(what.text), what.text)
        return
    from shipctl.engine.project import Project
    from shipctl.store.depot import open_depot
    from shipctl.store.local import LocalStore

    project = Project(root)
    with ExitStack() as stack:
        # beside the project's own store, so that files are linked and what is there is not fetched again
        beside = project.state if project.state.is_dir() else None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="verify-", dir=beside)))
        local = LocalStore(project.store if beside else folder / "store")
        depot = stack.enter_context(open_depot(*store, local))
        yield _fetched(what, depot, folder / "package", project.heads())


def _fetched(what: Named, depot: Depot, folder: Path, heads: Heads | None) -> Given:
    from shipctl.stages.artifacts import ModelPackage
    from shipctl.store.model_reading import ModelReader

    expect, retired = None, False
    if _DIGEST.fullmatch(what.reference):
        manifest = depot.manifest(what.reference)
        if manifest is None:
            raise SpecError(
                f"{depot.objects.uri} has no package {what.reference}; `shipctl registry` lists what it has"
            )
        package, label = depot.local.artifact(ModelPackage, manifest), what.text
    else:
        version = ModelReader(depot.objects, heads=heads).find(what.reference)
        package, expect, retired = version.artifact(), version.reference, version.retired is not None
        label = f"{expect} in {depot.objects.uri}"
    depot.fetch(package.files)
    depot.local.view(package, folder)
    return Given(folder, label, expect, package.digest, retired)


def store_of(
    what: Named, uri: str | None, spec: Path | None, environment: str | None, overrides: tuple[str, ...]
) -> tuple[StoreSpec, Path]:
    """Return the store to look in: the one in the URI, with the settings that the spec has for it."""
    from shipctl.cli.stores import chosen_store

    if what.store is None:
        return chosen_store(uri, spec, environment, overrides)
    if uri is not None:
        raise SpecError(f"{what.text} names a store, and so does --store {uri}; give one of them")
    with suppress(SpecError):  # whatever is wrong with the specs here, the URI says enough
        found = chosen_store(None, spec, environment, overrides)
        if found[0].uri.rstrip("/") == what.store:
            return found
    return chosen_store(what.store)


def trust_of(
    keys: tuple[Path, ...],
    certificates: tuple[Path, ...],
    identities: tuple[str, ...],
    policy: Path | None,
    project: Path,
) -> Trust:
    """Return who is trusted: those on the command line, or else those of the policy.

    :raises SpecError: if nobody is
    """
    from shipctl.evidence.policy import find_policy, load_policy
    from shipctl.evidence.verify import Trust

    trust = Trust.of(keys, certificates, identities)
    if identities and not certificates and policy is None:
        raise SpecError("--identity is about names in certificates; give the roots with --certificates")
    found = load_policy(policy) if policy is not None else None if trust else find_policy(project)
    if found is not None:
        trust |= found.trust
    if not trust:
        where = f"{found.name} trusts nobody" if found is not None else "there is no shipctl-policy.yaml here"
        raise SpecError(
            f"without a key that is trusted nothing can be verified, and {where}; give --key FILE or "
            "--certificates FILE"
        )
    return trust
