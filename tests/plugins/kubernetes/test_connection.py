"""Which cluster is meant, and who we are there: kubeconfigs, login programs, pods, certificates and proxies."""

from __future__ import annotations

import json
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import UnavailableError
from shipctl_plugins._kubernetes.api import exec_plugin, login
from shipctl_plugins._kubernetes.api.connection import (
    Access,
    Cluster,
    LoginError,
    Ref,
    UnreachableError,
    connect,
)
from support_faulty_api import TOKEN, FaultyApi, answer, faulty_api, refusal
from support_s3 import certificates

CONFIG = Ref("v1", "ConfigMap", "web")
GOOD = answer({"metadata": {"name": "web"}})
CA: dict[str, Any] = {"certificate-authority": "certs/authority.pem"}
UNVERIFIED: dict[str, Any] = {"insecure-skip-tls-verify": True}
UNKNOWN = refusal(401, "Unauthorized", "Unauthorized")


@pytest.fixture(autouse=True)
def nothing_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "KUBECONFIG",
        "KUBERNETES_SERVICE_HOST",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "http_proxy",
        "https_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def api() -> Iterator[FaultyApi]:
    with faulty_api() as api:
        yield api.then(GOOD)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    clusters: list[Cluster] = []

    def open_cluster(file: Path | None = None, log: Any = print, **access: Any) -> Cluster:
        access = {"timeout": "2s", **access}
        if file is not None:
            access["kubeconfig"] = str(file)
        clusters.append(connect(Access.model_validate(access), tmp_path, log))
        return clusters[-1]

    yield open_cluster
    for cluster in clusters:
        cluster.close()


def refused(call: Callable[[], Any], kind: type[UnavailableError] = UnavailableError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert caught.type is kind
    text = str(caught.value)
    assert "\n" not in text
    assert TOKEN not in text
    return text


def config(
    *contexts: str, current: str = "", server: str = "https://one:6443", **more: Any
) -> dict[str, Any]:
    """Return a kubeconfig of one cluster and one user."""
    return {
        "current-context": current,
        "clusters": [{"name": "one", "cluster": {"server": server}}],
        "users": [{"name": "me", "user": {"token": TOKEN}}],
        "contexts": [{"name": name, "context": {"cluster": "one", "user": "me"}} for name in contexts],
        **more,
    }


def written(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


# -- which kubeconfig and which context ------------------------------------------------------------------------


def test_a_kubeconfig_is_relative_to_the_spec(tmp_path: Path, opened: Any) -> None:
    written(tmp_path / "sub/config", config("a", current="a"))
    cluster = opened(kubeconfig="sub/config")
    assert (cluster.url, cluster.namespace, cluster.user) == ("https://one:6443", "default", "me")


def test_nothing_is_asked_by_connecting(tmp_path: Path, api: FaultyApi, opened: Any) -> None:
    opened(api.kubeconfig(tmp_path))
    assert api.seen == []


def test_without_an_option_the_kubeconfig_at_home_is_used(tmp_path: Path, opened: Any) -> None:
    written(tmp_path / "home/.kube/config", config("a", current="a"))
    assert opened().url == "https://one:6443"


def test_the_environments_kubeconfig_comes_first(
    tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "home/.kube/config", config("a", current="a", server="https://home:6443"))
    monkeypatch.setenv("KUBECONFIG", str(written(tmp_path / "env", config("a", current="a"))))
    assert opened().url == "https://one:6443"


def test_of_several_kubeconfigs_the_first_that_says_something_wins(
    tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As kubectl does; the Kubernetes client would release to the last file's current context."""
    first = written(tmp_path / "1", {**config("a", current="a"), "users": []})
    theirs = config("a", current="c", server="https://two:6443")
    theirs["clusters"].append({"name": "three", "cluster": {"server": "https://three:6443"}})
    theirs["contexts"].append({"name": "c", "context": {"cluster": "three", "user": "me"}})
    second = written(tmp_path / "2", theirs)
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/missing:{first}:{second}:")
    cluster = opened()
    assert (cluster.url, cluster.user) == ("https://one:6443", "me")
    assert opened(context="c").url == "https://three:6443"
    assert first.read_text() == json.dumps({**config("a", current="a"), "users": []})


def test_paths_are_relative_to_the_file_that_they_stand_in(
    tmp_path: Path, opened: Any, api: FaultyApi
) -> None:
    document = config("a", current="a", server=api.url)
    document["users"][0]["user"] = {"tokenFile": "secret/token"}
    file = written(tmp_path / "deep/config", document)
    written(tmp_path / "deep/secret/token", f"{TOKEN}\n")
    opened(file).get(CONFIG)
    assert api.seen[0].headers["authorization"] == f"Bearer {TOKEN}"


def test_the_options_namespace_comes_before_the_contexts(tmp_path: Path, opened: Any, api: FaultyApi) -> None:
    file = api.kubeconfig(tmp_path)
    assert opened(file).namespace == "shop"
    assert opened(file, namespace="other").namespace == "other"


def test_an_unknown_context_is_named_with_the_nearest(tmp_path: Path, opened: Any) -> None:
    file = written(tmp_path / "c", config("production", "staging", current="staging"))
    text = refused(lambda: opened(file, context="prodution"))
    assert text == f"there is no context 'prodution' in {file}; did you mean 'production'?"
    text = refused(lambda: opened(file, context="xyz"))
    assert text == f"there is no context 'xyz' in {file}; there is production, staging"


def test_a_kubeconfig_without_a_current_context_is_not_guessed_about(tmp_path: Path, opened: Any) -> None:
    file = written(tmp_path / "c", config("b", "a"))
    assert refused(lambda: opened(file)) == (
        f"{file} has no current context; name one with `context:` (there is a, b)"
    )


def test_a_missing_kubeconfig_is_said(tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(lambda: opened(kubeconfig="nope")) == (
        f"there is no kubeconfig {tmp_path}/nope; correct `kubeconfig:`"
    )
    assert refused(opened) == (
        "there is no kubeconfig: no `kubeconfig:` in the target's options, no KUBECONFIG in the environment, no "
        "~/.kube/config, and this runs in no pod; get one from who runs the cluster"
    )
    monkeypatch.setenv("KUBECONFIG", "/nowhere/1:/nowhere/2")
    assert refused(opened) == (
        "there is no kubeconfig at '/nowhere/1:/nowhere/2'; correct the environment variable KUBECONFIG"
    )


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (
            "users: [{name: me, user: {token: sesame-open-0123456789}\n - x",
            "{file}:2:2: this is no YAML; correct",
        ),
        ("- 1", "{file} is no kubeconfig; correct"),
        ({**config("a", current="a"), "users": [TOKEN]}, "{file}: users has an entry without name and user;"),
        (
            {**config("a", current="a"), "clusters": []},
            "names the cluster 'one', which it lacks; there is none",
        ),
        (
            {**config("a", current="a"), "users": [{"name": "you", "user": {"token": TOKEN}}]},
            "context a of {file} names the user 'me', which it lacks; there is you",
        ),
        (
            config("a", current="a", clusters=[{"name": "one", "cluster": {}}]),
            "cluster one of {file} has no `server`",
        ),
        (
            config(
                "a", current="a", users=[{"name": "me", "user": {"token": TOKEN, "client-key-data": "abc"}}]
            ),
            "cannot use context a of {file}: Error; see whether kubectl can use it",
        ),
        (
            config(
                "a",
                current="a",
                users=[{"name": "me", "user": {"token": TOKEN, "client-certificate": "nope"}}],
            ),
            "cannot use context a of {file}: its `client-certificate` {folder}/nope cannot be read; correct it",
        ),
    ],
)
def test_a_broken_kubeconfig_is_said_without_its_secrets(
    tmp_path: Path, opened: Any, document: Any, text: str
) -> None:
    file = written(tmp_path / "c", document)
    with pytest.raises(UnavailableError) as caught:
        opened(file)
    said = str(caught.value)
    assert text.format(file=file, folder=tmp_path) in said
    assert TOKEN not in said


# -- who we are ------------------------------------------------------------------------------------------------


def test_no_secret_is_in_what_a_cluster_shows_of_itself(tmp_path: Path, opened: Any, api: FaultyApi) -> None:
    cluster = opened(api.kubeconfig(tmp_path))
    shown = [
        repr(cluster),
        repr(cluster._transport.login),
        cluster.url,
        cluster.user,
        cluster._transport.login.source,
    ]
    assert TOKEN not in " ".join(shown)


def test_user_and_password_are_sent(tmp_path: Path, opened: Any, api: FaultyApi) -> None:
    opened(api.kubeconfig(tmp_path, {"username": "u", "password": "p"})).get(CONFIG)
    assert api.seen[0].headers["authorization"] == "Basic dTpw"


def test_a_user_who_acts_as_another_stays_that_other(tmp_path: Path, opened: Any, api: FaultyApi) -> None:
    opened(api.kubeconfig(tmp_path, {"token": TOKEN, "as": "deployer", "as-groups": ["ops"]})).get(CONFIG)
    assert api.seen[0].headers["impersonate-user"] == "deployer"
    assert api.seen[0].headers["impersonate-group"] == "ops"


def test_a_token_that_was_renewed_in_its_file_is_read_again(
    tmp_path: Path, opened: Any, api: FaultyApi
) -> None:
    token = written(tmp_path / "token", "first-one")
    cluster = opened(api.kubeconfig(tmp_path, {"tokenFile": str(token)}))
    cluster.get(CONFIG)
    token.write_text("second-one")
    api.acts[:] = [UNKNOWN, GOOD]
    assert cluster.get(CONFIG)
    assert [each.headers["authorization"] for each in api.seen] == [
        "Bearer first-one",
        "Bearer first-one",
        "Bearer second-one",
    ]


PROGRAM = """#!{python}
import json, os, sys, time
info = json.loads(os.environ["KUBERNETES_EXEC_INFO"])
folder = {folder!r}
with open(folder + "/asked", "a") as asked:
    asked.write(json.dumps([sys.argv[1:], os.environ.get("REGION"), info]) + "\\n")
number = len(open(folder + "/asked").readlines())
status = {{"token": "token-%d" % number}}
{body}
print(json.dumps({{"apiVersion": info["apiVersion"], "kind": "ExecCredential", "status": status}}))
"""


@pytest.fixture
def program(tmp_path: Path, api: FaultyApi) -> Callable[..., Path]:
    def write(body: str = "", **spec: Any) -> Path:
        file = tmp_path / "bin/get-token"
        written(file, PROGRAM.format(python=sys.executable, folder=str(tmp_path), body=body)).chmod(0o755)
        wanted = {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "./bin/get-token",
            "args": ["--cluster", "lab"],
            "env": [{"name": "REGION", "value": "eu"}],
            "interactiveMode": "Never",
            **spec,
        }
        return api.kubeconfig(tmp_path, {"exec": wanted})

    return write


def test_a_login_program_says_who_we_are(tmp_path: Path, opened: Any, api: FaultyApi, program: Any) -> None:
    cluster = opened(program())
    cluster.get(CONFIG)
    cluster.get(CONFIG)
    assert [each.headers["authorization"] for each in api.seen] == ["Bearer token-1", "Bearer token-1"]
    args, region, info = json.loads((tmp_path / "asked").read_text())
    assert (args, region) == (["--cluster", "lab"], "eu")
    assert info == {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "spec": {"interactive": False},
    }


def test_a_login_program_is_told_of_the_cluster_where_it_wants_that(
    tmp_path: Path, opened: Any, api: FaultyApi, program: Any
) -> None:
    opened(program(provideClusterInfo=True))
    told = json.loads((tmp_path / "asked").read_text())[2]["spec"]["cluster"]
    assert told == {"server": api.url}


def test_a_login_that_expires_is_renewed_before(opened: Any, api: FaultyApi, program: Any) -> None:
    soon = 'status["expirationTimestamp"] = "2001-01-01T00:00:00Z" if number == 1 else "2999-01-01T00:00:00Z"'
    cluster = opened(program(soon))
    cluster.get(CONFIG)
    cluster.get(CONFIG)
    assert [each.headers["authorization"] for each in api.seen] == ["Bearer token-2", "Bearer token-2"]


def test_a_login_that_the_server_has_forgotten_is_renewed_once(
    opened: Any, api: FaultyApi, program: Any
) -> None:
    cluster = opened(program())
    api.acts[:] = [UNKNOWN, GOOD]
    assert cluster.get(CONFIG)
    api.acts[:] = [UNKNOWN]
    assert "does not accept the login of me" in refused(lambda: cluster.get(CONFIG), LoginError)
    assert len(api.seen) == 4


@pytest.mark.parametrize(
    ("spec", "body", "text"),
    [
        (
            {"command": "no-such-login", "installHint": "get it\n at example.org"},
            "",
            ("no-such-login of {context} is not installed here; get it at example.org"),
        ),
        (
            {},
            "print('looking', file=sys.stderr); sys.exit('session is over')",
            ("get-token of {context} failed with 1: session is over; log in again"),
        ),
        ({}, "print('sesame'); sys.exit(0)", "get-token of {context} did not print an ExecCredential; see"),
        (
            {},
            "status = {}",
            "get-token of {context} gave neither a token nor a certificate with its key; log in",
        ),
        (
            {},
            "info['apiVersion'] = 'v0'",
            (
                "get-token of {context} speaks v0, and the kubeconfig has "
                "client.authentication.k8s.io/v1; write the kubeconfig again with the cluster's own tool"
            ),
        ),
        (
            {},
            "time.sleep(60)",
            "get-token of {context} has not ended after 0.5 s; see what it waits for by itself",
        ),
        (
            {"interactiveMode": "Always"},
            "",
            ("get-token of {context} asks a person, and there is no terminal; log in by another user"),
        ),
        (
            {"command": ""},
            "",
            "the user of {context} has an `exec` without `command`; correct the kubeconfig",
        ),
    ],
)
def test_a_login_program_that_fails_is_said(
    tmp_path: Path,
    opened: Any,
    program: Any,
    monkeypatch: pytest.MonkeyPatch,
    spec: Any,
    body: str,
    text: str,
) -> None:
    monkeypatch.setattr(exec_plugin, "_QUIET", 0.5 if "sleep" in body else 30.0)
    said = refused(lambda: opened(program(body, **spec)), LoginError)
    assert text.format(context=f"context lab of {tmp_path}/kubeconfig") in said
    assert "sesame" not in said


def test_a_login_programs_certificate_is_used(tmp_path: Path, opened: Any, program: Any) -> None:
    pair = certificates(tmp_path / "certs")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=pair.authority)
    tls.load_cert_chain(pair.server)
    tls.verify_mode = ssl.CERT_REQUIRED
    body = (
        f"status = {{'clientCertificateData': open({str(pair.server)!r}).read(), "
        f"'clientKeyData': open({str(pair.server)!r}).read()}}"
    )
    with faulty_api(tls) as api:
        api.then(GOOD)
        user = json.loads(program(body).read_text())["users"][0]["user"]
        file = api.kubeconfig(tmp_path, user, **CA)
        assert opened(file).get(CONFIG)
        assert "authorization" not in api.seen[0].headers
        file = api.kubeconfig(tmp_path, {}, **CA)
        with pytest.raises(UnreachableError) as caught:
            opened(file).get(CONFIG)
    assert TOKEN not in str(caught.value)


# -- in a pod --------------------------------------------------------------------------------------------------


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    account = tmp_path / "account"
    pair = certificates(account)
    written(account / "token", TOKEN)
    written(account / "namespace", "models\n")
    (account / "ca.crt").write_bytes(Path(pair.authority).read_bytes())
    monkeypatch.setattr(login, "POD_ACCOUNT", account)
    return account


def test_in_a_pod_its_own_account_and_namespace_are_used(
    pod: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(pod / "server.pem")
    with faulty_api(tls) as api:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", api.url.rpartition(":")[2])
        api.then(GOOD)
        cluster = opened()
        assert cluster.get(CONFIG)
        assert (cluster.namespace, cluster.user) == ("models", "the pod's service account")
        assert api.seen[0].path == "/api/v1/namespaces/models/configmaps/web"
        assert api.seen[0].headers["authorization"].lower() == f"bearer {TOKEN}"
        (pod / "token").write_text("rotated-token")
        api.acts[:] = [UNKNOWN, GOOD]
        assert cluster.get(CONFIG)
        assert api.seen[-1].headers["authorization"].lower() == "bearer rotated-token"


def test_a_pod_without_a_token_is_said(pod: Path, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    (pod / "token").unlink()
    assert refused(opened, LoginError) == (
        "this runs in a pod without the token of a service account (Service token file does not exist.); remove "
        "`automountServiceAccountToken: false` from the pod, or name a kubeconfig by `kubeconfig:`"
    )


def test_a_pod_has_no_contexts(pod: Path, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    assert refused(lambda: opened(context="lab")) == (
        "there is no context 'lab': this runs in a pod, without a kubeconfig; remove `context:`, or name a file by "
        "`kubeconfig:`"
    )


# -- trust and proxies -----------------------------------------------------------------------------------------


@pytest.fixture
def safe(tmp_path: Path) -> Iterator[FaultyApi]:
    pair = certificates(tmp_path / "certs")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(pair.server)
    with faulty_api(tls) as api:
        yield api.then(GOOD)


def test_the_kubeconfigs_authority_is_trusted_and_no_other(
    tmp_path: Path, opened: Any, safe: FaultyApi
) -> None:
    assert opened(safe.kubeconfig(tmp_path, **CA)).get(CONFIG)
    cluster = opened(safe.kubeconfig(tmp_path), timeout="20s")
    began = time.monotonic()
    text = refused(lambda: cluster.get(CONFIG), UnreachableError)
    assert time.monotonic() - began < 5
    assert text.startswith(f"the certificate of {safe.url} is not trusted (")
    assert text.endswith(f"; correct certificate-authority in context lab of {tmp_path}/kubeconfig")


def test_an_unverified_server_is_used_and_told_of(tmp_path: Path, opened: Any, safe: FaultyApi) -> None:
    said: list[str] = []
    cluster = opened(safe.kubeconfig(tmp_path, **UNVERIFIED), said.append)
    assert cluster.get(CONFIG)
    assert said == [
        f"nobody proves to be {safe.url}: context lab of {tmp_path}/kubeconfig has insecure-skip-tls-verify"
    ]


def test_a_proxy_is_used_with_its_password_which_is_never_shown(
    tmp_path: Path, opened: Any, api: FaultyApi
) -> None:
    proxy = f"http://me:{TOKEN}@{api.url.removeprefix('http://')}"
    proxied: dict[str, Any] = {"proxy-url": proxy}
    api.url = "http://cluster.example:6443"
    cluster = opened(api.kubeconfig(tmp_path, {"token": "other"}, **proxied))
    assert cluster.get(CONFIG)
    assert api.seen[0].headers["host"] == "cluster.example:6443"
    assert api.seen[0].headers["proxy-authorization"].startswith("Basic ")
    api.acts[:] = [refusal(503, "", "no")]
    refused(lambda: cluster.get(CONFIG), UnreachableError)
