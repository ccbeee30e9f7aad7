"""Asking a login program that a kubeconfig names (`exec:`, such as `aws eks get-token`) who we are.

Protocol: kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins. The Kubernetes
client goes on as nobody when the program fails; here that is an error, with what the program said.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from shipctl_plugins._kubernetes.api.errors import LoginError

_QUIET, _ATTENDED = 60.0, 300.0
"""Seconds that the program may take: without and with a person at the terminal."""
_CLUSTER = (
    "server",
    "tls-server-name",
    "insecure-skip-tls-verify",
    "certificate-authority-data",
    "proxy-url",
    "disable-compression",
)
_SHOWN = 300


@dataclass(frozen=True)
class Credential:
    """What the program said."""

    token: str | None = field(repr=False)
    certificate: str | None = field(repr=False)
    """PEM, with ``key``."""
    key: str | None = field(repr=False)
    expires: float | None
    """Seconds since the epoch; None for never."""


def run_plugin(spec: Mapping[str, Any], cluster: Mapping[str, Any], folder: Path, shown: str) -> Credential:
    """Run the program and return what it says.

    ``spec`` is the `exec` of the kubeconfig's user, ``folder`` what a relative path is relative to.

    :raises LoginError: if it is not installed, fails, takes too long, or says nothing of use
    """
    command = _found(spec, folder, shown)
    mode = spec.get("interactiveMode") or "IfAvailable"
    attended = mode != "Never" and sys.stdin is not None and sys.stdin.isatty()
    if mode == "Always" and not attended:
        raise LoginError(
            f"{_named(spec, shown)} asks a person, and there is no terminal; log in by another user"
        )
    said = _run(spec, [command, *map(str, spec.get("args") or ())], cluster, shown, attended=attended)
    return _credential(said, spec, shown)


def _run(
    spec: Mapping[str, Any], command: list[str], cluster: Mapping[str, Any], shown: str, *, attended: bool
) -> str:
    patience = _ATTENDED if attended else _QUIET
    info = {"apiVersion": spec.get("apiVersion"), "kind": "ExecCredential", "spec": {"interactive": attended}}
    if spec.get("provideClusterInfo"):
        info["spec"] = {"interactive": attended, "cluster": _described(cluster)}
    given = {str(each["name"]): str(each["value"]) for each in spec.get("env") or ()}
    try:
        done = subprocess.run(
            command,
            stdin=None if attended else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if attended else subprocess.PIPE,
            env={**os.environ, **given, "KUBERNETES_EXEC_INFO": json.dumps(info)},
            text=True,
            errors="replace",
            timeout=patience,
            check=False,
        )
    except OSError as exc:
        raise LoginError(
            f"{_named(spec, shown)} does not start: {exc.strerror}; see whether it runs by itself"
        ) from None
    except subprocess.TimeoutExpired:
        raise LoginError(
            f"{_named(spec, shown)} has not ended after {patience:g} s; see what it waits for by itself"
        ) from None
    if done.returncode:
        lines = (done.stderr or "").strip().splitlines()
        why = f": {lines[-1].strip()[:_SHOWN]}" if lines else ""
        raise LoginError(f"{_named(spec, shown)} failed with {done.returncode}{why}; log in again")
    return done.stdout


def _found(spec: Mapping[str, Any], folder: Path, shown: str) -> str:
    """Return the program: a name is looked up on PATH, anything with a slash is relative to the kubeconfig."""
    command = str(spec.get("command") or "")
    if not command:
        raise LoginError(f"the user of {shown} has an `exec` without `command`; correct the kubeconfig")
    found = shutil.which(str(folder / command) if os.sep in command else command)
    if found is None:
        hint = " ".join(str(spec.get("installHint") or "install it").split())[:_SHOWN]
        raise LoginError(f"{_named(spec, shown)} is not installed here; {hint}")
    return found


def _credential(said: str, spec: Mapping[str, Any], shown: str) -> Credential:
    """Read an ExecCredential; nothing of it may be in a message."""
    try:
        document = json.loads(said)
        status = document["status"]
        version = document["apiVersion"]
        expires = status.get("expirationTimestamp")
        credential = Credential(
            token=status.get("token"),
            certificate=status.get("clientCertificateData"),
            key=status.get("clientKeyData"),
            expires=datetime.fromisoformat(expires).timestamp() if expires else None,
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        raise LoginError(
            f"{_named(spec, shown)} did not print an ExecCredential; see what it prints"
        ) from None
    if version != spec.get("apiVersion"):
        raise LoginError(
            f"{_named(spec, shown)} speaks {version}, and the kubeconfig has {spec.get('apiVersion')}; "
            "write the kubeconfig again with the cluster's own tool"
        )
    if not credential.token and not (credential.certificate and credential.key):
        raise LoginError(
            f"{_named(spec, shown)} gave neither a token nor a certificate with its key; log in again"
        )
    return credential


def _described(cluster: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: cluster[key] for key in _CLUSTER if key in cluster}
    if "certificate-authority" in cluster:
        with suppress(OSError):
            content = Path(cluster["certificate-authority"]).read_bytes()
            known["certificate-authority-data"] = base64.b64encode(content).decode()
    for each in cluster.get("extensions") or ():
        if each.get("name") == "client.authentication.k8s.io/exec":
            known["config"] = each.get("extension")
    return known


def _named(spec: Mapping[str, Any], shown: str) -> str:
    return f"the login program {Path(str(spec.get('command'))).name} of {shown}"
