"""What a spec may say about a release by way of a Git repository."""

from __future__ import annotations

import re
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from shipctl.records import Record
from shipctl.release.references import Named as PluginName
from shipctl.release.references import Reference
from shipctl.spec.fields import Text, fault
from shipctl.spec.problems import shorten
from shipctl.spec.units import Duration
from shipctl_plugins._kubernetes.manifests.fields import DnsLabel, Subdomain
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions
from shipctl_plugins._metrics.web import is_loopback

PLACEHOLDERS = ("what", "pipeline", "version", "revision", "stage", "environment", "run")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_PART = re.compile(r"[^/\x00-\x1f\x7f]+")
_AUTHOR = re.compile(r"[^<>\n\0]*[^<>\n\0 ] <[^<>\s\0]+>")
_BRANCH = re.compile(r"(?!-)(?!.*(?:\.\.|@\{|//|\.lock(?:/|$)|/\.|\.$|/$))[^\s~^:?*\[\\\x00-\x1f\x7f]+")


def _repository(value: str) -> str:
    if value.startswith("-") or re.search(r"[\s\0]", value):
        raise fault(f"{shorten(value)} is no address of a Git repository; write a URL or a folder")
    if "::" in value.split("/", 1)[0]:
        raise fault(f"{shorten(value)} names a helper program, which is not run; write a URL or a folder")
    parts = urlsplit(value)
    if parts.password is not None or (parts.username and parts.scheme in {"http", "https"}):
        raise fault(
            "git.repository has credentials in it, which would show in logs; remove them and name the environment "
            "variable with the token by tokenEnv"
        )
    return value


def _branch(value: str) -> str:
    if not _BRANCH.fullmatch(value) or value.startswith("refs/"):
        raise fault(f"{shorten(value)} is no name of a branch; write it as `git branch` shows it")
    return value


def _path(value: str) -> str:
    parts = [part for part in value.rstrip("/").split("/") if part != "."]
    if not all(_PART.fullmatch(part) for part in parts) or any(part in {"..", ".git"} for part in parts):
        raise fault(f"{shorten(value)} is no folder inside a repository; write it as clusters/prod/digits")
    return "/".join(parts)


def _author(value: str) -> str:
    if not _AUTHOR.fullmatch(value):
        raise fault(f"{shorten(value)} is no author; write it as `Release Bot <bot@example.com>`")
    return value


def _message(value: str) -> str:
    unknown = [name for name in _PLACEHOLDER.findall(value) if name not in PLACEHOLDERS]
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        raise fault(f"there is no {{{unknown[0]}}} for a commit's message; there are {known}")
    return value


def _variable(value: str) -> str:
    if not value.isidentifier() or not value.isascii():
        raise fault("tokenEnv is not the name of an environment variable; never write the token itself")
    return value


def filled(template: str, values: dict[str, str]) -> str:
    """Return a commit's message with its placeholders filled in; what is put in is not looked at again."""
    return _PLACEHOLDER.sub(lambda found: values[found[1]], template)


class GitOptions(Record):
    """Which repository, which folder of it, and as whom."""

    repository: Annotated[Text, AfterValidator(_repository)] = Field(
        description="Its URL (https://, ssh://, git@host:path, file://), or a folder, relative to the spec."
    )
    branch: Annotated[Text, AfterValidator(_branch)] = Field(
        default="main", description="The branch that the cluster is kept at."
    )
    path: Annotated[Text, AfterValidator(_path)] = Field(
        description="The folder that this pipeline's objects are written to, and nobody else's: a kustomization."
    )
    author: Annotated[Text, AfterValidator(_author)] = Field(
        default="shipctl <shipctl@localhost>", description="Who commits, as `Name <mail address>`."
    )
    message: Annotated[Text, AfterValidator(_message)] = Field(
        default="{pipeline} {version}: {what}",
        description="A commit's message, with "
        + ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        + " filled in. "
        "Lines that name pipeline, version, revision and run come below it in any case.",
    )
    pullRequest: bool = Field(  # noqa: N815
        default=False,
        description="Whether a release is pushed to a branch `shipctl/<name>-<version>`, and waits until that is "
        "merged or approved.",
    )
    username: Text = Field(default="git", description="The user's name that goes with the token.")
    tokenEnv: Annotated[Text, AfterValidator(_variable)] | None = Field(  # noqa: N815
        default=None,
        description="The environment variable that holds a token or password, sent over https only; left out, git's "
        "own credential helpers, or keys of ssh.",
    )
    timeout: Duration = Field(
        default=Duration("60s"), description="How long one exchange with the repository may take."
    )

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        scheme = urlsplit(self.repository).scheme
        if self.tokenEnv is not None and scheme not in {"http", "https"}:
            raise fault("tokenEnv is for a repository at https://; remove it, or correct git.repository")
        if self.tokenEnv is not None and scheme == "http" and not is_loopback(self.repository):
            raise fault(
                f"the token would be sent to {self.repository} for everybody to read; write https:// instead"
            )
        return self


class ArgoCdOptions(Record):
    """The Application that applies the folder."""

    application: Subdomain = Field(description="Its name.")
    namespace: DnsLabel = Field(default="argocd", description="Its namespace.")


class FluxOptions(Record):
    """The Kustomization that applies the folder."""

    kustomization: Subdomain = Field(description="Its name.")
    namespace: DnsLabel = Field(default="flux-system", description="Its namespace.")


class EngineOptions(Record):
    """Who applies the folder to the cluster, and whose word counts for that it is there."""

    argocd: ArgoCdOptions | None = Field(default=None, description="Argo CD.")
    flux: FluxOptions | None = Field(default=None, description="Flux.")
    wait: bool = Field(
        default=True,
        description="Without argocd and flux: whether the Deployment in the cluster is waited for. false: a release is "
        "done once it is committed, and nobody knows what became of it.",
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.argocd and self.flux:
            raise fault("a folder is applied by argocd or by flux; remove one of them")
        if (self.argocd or self.flux) and not self.wait:
            raise fault("wait: false is for neither argocd nor flux; remove it, or them")
        return self


class GitopsOptions(KubernetesOptions):
    """What is committed where, and who applies it."""

    router: PluginName = Field(
        default=Reference(uses="service"),
        description="Not used here: the Service of the app selects what serves.",
    )
    git: GitOptions = Field(description="The repository.")
    engine: EngineOptions = Field(
        default=EngineOptions(), description="Who applies it; left out, the Deployment is looked at."
    )
