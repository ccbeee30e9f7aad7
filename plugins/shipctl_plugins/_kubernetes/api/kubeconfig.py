"""Reading kubeconfig files as kubectl does: which of them, which context, and what stands in it.

The rules are those of kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig: of several files
the first that says something wins, and paths are relative to the file that they stand in. (The Kubernetes client lets
the last file's current context win; whoever releases with it would reach another cluster than kubectl does.)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shipctl.errors import UnavailableError
from shipctl.spec.problems import listed, near, shorten

_PATHS = {"cluster": ("certificate-authority",), "user": ("client-certificate", "client-key", "tokenFile")}


@dataclass(frozen=True)
class Context:
    """One context of a kubeconfig, with paths made absolute."""

    name: str
    shown: str
    """Where it stands, for messages."""
    files: tuple[Path, ...]
    namespace: str | None
    user_name: str
    cluster: dict[str, Any] = field(repr=False)
    user: dict[str, Any] = field(repr=False)
    folder: Path
    """Of the file with the user: programs named there are relative to it."""

    def document(self, user: dict[str, Any]) -> dict[str, Any]:
        """Return a kubeconfig of this context alone, with ``user`` as its user."""
        inside = {"cluster": "cluster", "user": "user"}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": self.name,
            "contexts": [{"name": self.name, "context": inside}],
            "clusters": [{"name": "cluster", "cluster": self.cluster}],
            "users": [{"name": "user", "user": user}],
        }


def kubeconfig_files(given: str | None, base: Path) -> tuple[Path, ...]:
    """Return the files that are meant: the one given, those of $KUBECONFIG, or the one at home; none if none is there.

    :raises UnavailableError: if those that are named are not there
    """
    if given is not None:
        path = base / Path(given).expanduser()
        if not path.is_file():
            raise UnavailableError(f"there is no kubeconfig {path}; correct `kubeconfig:`")
        return (path,)
    named = os.environ.get("KUBECONFIG", "")
    if named:
        paths = [Path(part).expanduser() for part in named.split(os.pathsep) if part]
        there = tuple(path for path in paths if path.is_file())
        if not there:
            raise UnavailableError(
                f"there is no kubeconfig at {shorten(named)}; correct the environment variable KUBECONFIG"
            )
        return there
    home = Path("~/.kube/config").expanduser()
    return (home,) if home.is_file() else ()


def read_context(files: Sequence[Path], wanted: str | None) -> Context:
    """Return the context ``wanted``, or the current one.

    :raises UnavailableError: if a file cannot be read, or there is no such context
    """
    documents = [(path, _read(path)) for path in files]
    shown = listed(map(str, files))
    contexts = _named(documents, "contexts", "context")
    if wanted is None:
        currents = (document.get("current-context") for _, document in documents)
        wanted = next((str(each) for each in currents if each), None)
        if wanted is None:
            there = listed(sorted(contexts), "no contexts at all")
            raise UnavailableError(
                f"{shown} has no current context; name one with `context:` (there is {there})"
            )
    if wanted not in contexts:
        hint = near(wanted, contexts) or f"; there is {listed(sorted(contexts), 'none at all')}"
        raise UnavailableError(f"there is no context {shorten(wanted)} in {shown}{hint}")
    context = contexts[wanted][1]
    cluster = _part(documents, "cluster", context, wanted, shown)
    user = _part(documents, "user", context, wanted, shown) if context.get("user") else (files[0], {})
    namespace = context.get("namespace")
    return Context(
        name=wanted,
        shown=f"context {wanted} of {shown}",
        files=tuple(files),
        namespace=str(namespace) if namespace else None,
        user_name=str(context.get("user") or "nobody"),
        cluster=cluster[1],
        user=user[1],
        folder=user[0].parent.resolve(),
    )


def _part(
    documents: Sequence[tuple[Path, dict[str, Any]]],
    what: str,
    context: dict[str, Any],
    name: str,
    shown: str,
) -> tuple[Path, dict[str, Any]]:
    """Return the cluster or the user of a context, and the file that it stands in."""
    wanted = str(context.get(what, ""))
    known = _named(documents, f"{what}s", what)
    if wanted not in known:
        hint = near(wanted, known) or f"; there is {listed(sorted(known))}"
        raise UnavailableError(
            f"context {name} of {shown} names the {what} {shorten(wanted)}, which it lacks{hint}"
        )
    path, found = known[wanted]
    if what == "cluster" and not found.get("server"):
        raise UnavailableError(f"the cluster {wanted} of {path} has no `server`; correct the kubeconfig")
    absolute = {key: str(path.parent.resolve() / found[key]) for key in _PATHS[what] if found.get(key)}
    return path, {**found, **absolute}


def _named(
    documents: Sequence[tuple[Path, dict[str, Any]]], many: str, one: str
) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Return the entries of one kind by name; of two with the same name the first counts."""
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path, document in documents:
        for each in document.get(many) or ():
            if not isinstance(each, dict) or not isinstance(each.get(one) or {}, dict) or "name" not in each:
                raise UnavailableError(
                    f"{path}: {many} has an entry without name and {one}; correct the kubeconfig"
                )
            found.setdefault(str(each["name"]), (path, each.get(one) or {}))
    return found


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is no UTF-8"
        raise UnavailableError(
            f"cannot read the kubeconfig {path}: {reason}; correct `kubeconfig:`"
        ) from None
    except yaml.YAMLError as exc:  # its text has lines of the file, and so perhaps a token
        mark = getattr(exc, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UnavailableError(f"{path}{where}: this is no YAML; correct the kubeconfig") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UnavailableError(f"{path} is no kubeconfig; correct `kubeconfig:`")
    return document
