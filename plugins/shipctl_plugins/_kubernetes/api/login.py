"""Who we are to a cluster and where it is: from a kubeconfig, or from the pod that this runs in.

What it says is put into a configuration of the Kubernetes client, which knows certificates, proxies and tokens that
have to be renewed.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from shipctl.errors import UnavailableError
from shipctl.spec.problems import shorten
from shipctl_plugins._kubernetes.api.access import Access
from shipctl_plugins._kubernetes.api.errors import LoginError
from shipctl_plugins._kubernetes.api.exec_plugin import run_plugin
from shipctl_plugins._kubernetes.api.kubeconfig import Context, kubeconfig_files, read_context

POD_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes puts a pod's token, its namespace, and the authority of the API server."""
_IMPERSONATE = {"as": "Impersonate-User", "as-uid": "Impersonate-Uid", "as-groups": "Impersonate-Group"}
_EARLY = 30.0
"""Seconds before its end at which a token counts as expired."""
_SHORTEST = 6
"""Characters from which on a credential is taken out of texts; one that is shorter would tear words."""


@dataclass(frozen=True)
class Login:
    """A way into a cluster. No secret is in its representation."""

    configuration: Any = field(repr=False)
    """A `kubernetes.client.Configuration`."""
    url: str
    """The API server's, without credentials."""
    namespace: str
    user: str
    source: str
    """Where all this stands, for messages."""
    impersonated: tuple[tuple[str, str], ...] = ()
    """Headers that ask for being somebody else (`as:` of the kubeconfig's user)."""
    expires: float | None = None
    """Seconds since the epoch; None where the Kubernetes client itself renews, or nothing expires."""

    @property
    def expired(self) -> bool:
        """Whether it has to be made anew."""
        return self.expires is not None and time.time() > self.expires - _EARLY

    def headers(self) -> list[tuple[str, str]]:
        """Return the headers that say who we are. It may renew a token, so one thread at a time.

        :raises LoginError: if a token cannot be renewed
        """
        try:
            settings = self.configuration.auth_settings()
        except Exception as exc:  # noqa: BLE001  (whatever a provider of tokens raises; its text may have one)
            raise LoginError(
                f"cannot renew the login of {self.user} ({self.source}): {type(exc).__name__}; log in again"
            ) from None
        found = [
            (str(each["key"]), str(each["value"]).strip())  # a file's last line ends with a line break
            for each in settings.values()
            if each.get("value") and each.get("in") == "header"
        ]
        return [*found, *self.impersonated]

    def redact(self, text: str) -> str:
        """Return ``text`` without what proves who we are."""
        for value in self.configuration.api_key.values():
            secret = str(value).split(" ", 1)[-1].strip()
            if len(secret) >= _SHORTEST:
                text = text.replace(secret, "***")
        return text


def log_in(access: Access, base: Path) -> Login:
    """Find out where the cluster is and who we are. The API server is not asked; a login program may run.

    ``base`` is what ``access.kubeconfig`` is relative to.

    :raises UnavailableError: if there is nothing to be found, or it does not work
    """
    files = kubeconfig_files(access.kubeconfig, base)
    if files:
        return _from_kubeconfig(read_context(files, access.context), access)
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        if access.context:
            raise UnavailableError(
                f"there is no context {shorten(access.context)}: this runs in a pod, without a kubeconfig; remove "
                "`context:`, or name a file by `kubeconfig:`"
            )
        return _from_pod(access)
    raise UnavailableError(
        "there is no kubeconfig: no `kubeconfig:` in the target's options, no KUBECONFIG in the environment, no "
        "~/.kube/config, and this runs in no pod; get one from who runs the cluster"
    )


def _from_kubeconfig(context: Context, access: Access) -> Login:
    user = dict(context.user)
    expires = None
    if "exec" in user and not (user.get("token") or user.get("tokenFile")):
        said = run_plugin(user.pop("exec"), context.cluster, context.folder, context.shown)
        expires = said.expires
        if said.token:
            user["token"] = said.token
        if said.certificate and said.key:
            user["client-certificate-data"] = _encoded(said.certificate)
            user["client-key-data"] = _encoded(said.key)
    if user.get("tokenFile"):  # it is renewed from outside, and so wins over a token that stands beside it
        user.pop("token", None)
    configuration = _configured(context, user)
    _use_proxy(configuration, context.cluster.get("proxy-url"))
    return Login(
        configuration=configuration,
        url=public(str(context.cluster["server"])),
        namespace=access.namespace or context.namespace or "default",
        user=context.user_name,
        source=context.shown,
        impersonated=_impersonated(user),
        expires=expires,
    )


def _configured(context: Context, user: dict[str, Any]) -> Any:
    """Return the client's configuration; its own messages are not passed on, as they may have parts of the file."""
    from kubernetes import config
    from kubernetes.client import Configuration

    configuration = Configuration()
    try:
        if "auth-provider" in user:  # what it renews is written back, or the user's other tools would lose it
            files = os.pathsep.join(map(str, context.files))
            config.load_kube_config(files, context.name, configuration)
        else:
            config.load_kube_config_from_dict(
                context.document(user), context.name, configuration, persist_config=False
            )
    except Exception as exc:  # noqa: BLE001  (what a wrong file makes of the client is not documented)
        missing = _missing(context, user)
        why = f"{missing}; correct it" if missing else f"{type(exc).__name__}; see whether kubectl can use it"
        raise LoginError(f"cannot use {context.shown}: {why}") from None
    if user.get("token") and not user.keys() & {"tokenFile", "auth-provider"}:
        configuration.refresh_api_key_hook = None  # it stays the same, and is not looked up for each request
    return configuration


def _missing(context: Context, user: Mapping[str, Any]) -> str | None:
    """Return which of the files is not there that a kubeconfig names."""
    named = {**context.cluster, **user}
    for key in ("certificate-authority", "client-certificate", "client-key", "tokenFile"):
        if named.get(key) and not os.access(named[key], os.R_OK):
            return f"its `{key}` {named[key]} cannot be read"
    return None


def _from_pod(access: Access) -> Login:
    from kubernetes.client import Configuration
    from kubernetes.config.config_exception import ConfigException
    from kubernetes.config.incluster_config import InClusterConfigLoader

    configuration = Configuration()
    loader = InClusterConfigLoader(
        token_filename=str(POD_ACCOUNT / "token"),
        cert_filename=str(POD_ACCOUNT / "ca.crt"),
        environ=os.environ,
    )
    try:
        loader.load_and_set(configuration)
    except (ConfigException, OSError) as exc:
        raise LoginError(
            f"this runs in a pod without the token of a service account ({exc}); remove "
            "`automountServiceAccountToken: false` from the pod, or name a kubeconfig by `kubeconfig:`"
        ) from None
    try:
        own = (POD_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    except OSError:
        own = ""
    namespace = access.namespace or own or "default"
    url = public(str(configuration.host))
    return Login(configuration, url, namespace, "the pod's service account", "the pod's service account")


def _use_proxy(configuration: Any, url: str | None) -> None:
    """Go through the kubeconfig's proxy, which older clients overlook, and send the password that stands in its URL."""
    import urllib3

    if url:
        configuration.proxy = url
    parts = urlsplit(configuration.proxy or "")
    if parts.username and not configuration.proxy_headers:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        configuration.proxy_headers = urllib3.make_headers(proxy_basic_auth=pair)


def _impersonated(user: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    headers: list[tuple[str, str]] = []
    for key, header in _IMPERSONATE.items():
        values = user.get(key) or ()
        headers += [(header, str(each)) for each in ([values] if isinstance(values, str) else values)]
    return tuple(headers)


def public(url: str) -> str:
    """Return a URL without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
