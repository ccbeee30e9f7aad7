"""Who the S3 store is, where its server is, and whether it trusts it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import SpecError, StoreError, UnavailableError
from shipctl.spec.models import StoreSpec
from support_proxy import Proxy, proxy_to, s3_error
from support_s3 import VIRTUAL_HOST, Certificates, S3Server, SmallParts, free_port, use

pytestmark = pytest.mark.slow
ROLE = "arn:aws:iam::123456789012:role/publisher"


@pytest.fixture
def proxy(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """In front of moto, to see who asks. Nobody has credentials yet."""
    use(monkeypatch, moto)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with proxy_to(moto.endpoint) as proxy:
        yield proxy


@pytest.fixture
def spec(moto: S3Server, proxy: Proxy) -> StoreSpec:
    return moto.spec(endpoint=proxy.endpoint)


def asked_as(spec: StoreSpec, base: Path, proxy: Proxy) -> tuple[str, str]:
    """Write and read with a store, and return the access key and the session token that it used."""
    with SmallParts(spec, base) as store:
        store.write("key", b"value")
        assert store.read("key") == b"value"
        list(store.unfinished(older_than=0))  # the other client
    users = set()
    for request in proxy.requests:
        found = re.search(r"Credential=([^/]*)/", request.headers.get("authorization", ""))
        if found and "/s3/" in request.headers["authorization"]:
            users.add((found[1], request.headers.get("x-amz-security-token", "")))
    (user,) = users
    return user


def credentials_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(
        "[default]\naws_access_key_id = of-default\naws_secret_access_key = x\n"
        "[ci]\naws_access_key_id = of-ci\naws_secret_access_key = x\naws_session_token = token-of-ci\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))


# -- who ---------------------------------------------------------------------------------------------------


def test_the_environment_of_aws(
    spec: StoreSpec, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-env")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-env")
    monkeypatch.setenv("MINIO_ACCESS_KEY", "of-minio")
    monkeypatch.setenv("MINIO_SECRET_KEY", "x")
    credentials_file(tmp_path / "credentials", monkeypatch)
    assert asked_as(spec, tmp_path, proxy) == ("of-env", "token-of-env")


def test_the_environment_of_minio(
    spec: StoreSpec, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIO_ACCESS_KEY", "of-minio")
    monkeypatch.setenv("MINIO_SECRET_KEY", "x")
    credentials_file(tmp_path / "credentials", monkeypatch)
    assert asked_as(spec, tmp_path, proxy) == ("of-minio", "")


def test_the_shared_credentials_file(
    spec: StoreSpec, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials_file(tmp_path / "credentials", monkeypatch)
    assert asked_as(spec, tmp_path, proxy) == ("of-default", "")


def test_a_profile_comes_before_the_environment(
    spec: StoreSpec, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-env")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    credentials_file(tmp_path / "credentials", monkeypatch)
    asked = asked_as(spec.model_copy(update={"profile": "ci"}), tmp_path, proxy)
    assert asked == ("of-ci", "token-of-ci")


def test_a_role_is_assumed_at_the_store_s_own_endpoint(
    spec: StoreSpec, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-env")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    key, token = asked_as(spec.model_copy(update={"role": ROLE}), tmp_path, proxy)
    assert key.startswith("ASIA")
    assert token
    (asked,) = [each for each in proxy.requests if "/sts/" in each.headers.get("authorization", "")]
    assert "Credential=of-env/" in asked.headers["authorization"]


def sts_answer(minutes: int) -> str:
    until = (datetime.now(UTC) + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return (
        '<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>'
        f"<AccessKeyId>ASIASHORT</AccessKeyId><SecretAccessKey>x</SecretAccessKey><SessionToken>t{minutes}</SessionToken>"
        f"<Expiration>{until}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
    )


def test_a_role_is_renewed_before_it_expires(
    spec: StoreSpec, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-env")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", proxy.endpoint)
    proxy.faults.clear()
    proxy.fault("POST", answer=(200, sts_answer(minutes=5)), headers={"Content-Type": "text/xml"})
    proxy.fault("POST", answer=(200, sts_answer(minutes=60)), headers={"Content-Type": "text/xml"}, times=99)
    with SmallParts(spec.model_copy(update={"role": ROLE}), tmp_path) as store:
        for _ in range(3):
            store.write("key", b"value")
    tokens = [each.headers["x-amz-security-token"] for each in proxy.seen("PUT")]
    assert tokens[-2:] == ["t60", "t60"]
    assert len(proxy.seen("POST")) == 2


@pytest.mark.parametrize("by", ["spec", "environment"])
def test_a_web_identity_token(
    spec: StoreSpec, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    (tmp_path / "token").write_text("a.jwt.token\n")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    if by == "spec":
        spec = spec.model_copy(update={"role": ROLE})
    else:
        monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", proxy.endpoint)
    key, token = asked_as(spec, tmp_path, proxy)
    assert key.startswith("ASIA")
    assert token


def test_the_machine_s_metadata_service(
    spec: StoreSpec, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Metadata(BaseHTTPRequestHandler):
        def answer(self, body: str) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def do_PUT(self) -> None:
            self.answer("token")

        def do_GET(self) -> None:
            until = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
            found = {"AccessKeyId": "of-machine", "SecretAccessKey": "x", "Token": "token-of-machine"}
            whole = {
                "Code": "Success",
                "Type": "AWS-HMAC",
                "LastUpdated": until,
                "Expiration": until,
                **found,
            }
            self.answer(json.dumps(whole) if self.path.endswith("/the-role") else "the-role")

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        try:
            assert asked_as(spec, tmp_path, proxy) == ("of-machine", "token-of-machine")
        finally:
            server.shutdown()


# -- nobody ------------------------------------------------------------------------------------------------


def refused(spec: StoreSpec, base: Path) -> str:
    with SmallParts(spec, base) as store, pytest.raises(UnavailableError) as caught:
        store.check()
    return str(caught.value)


def test_no_credentials_at_all(spec: StoreSpec, tmp_path: Path) -> None:
    assert refused(spec, tmp_path) == (
        f"no credentials for {spec.uri}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
        "(or MINIO_ACCESS_KEY and MINIO_SECRET_KEY), or name a `profile:` of the shared credentials file"
    )


@pytest.mark.parametrize(
    ("given", "missing"), [("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY"), ("MINIO_SECRET_KEY", "MINIO_ACCESS_KEY")]
)
def test_half_of_the_credentials_of_minio(
    spec: StoreSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, missing: str
) -> None:
    monkeypatch.setenv(given, "geheim")
    said = refused(spec, tmp_path)
    assert said.startswith(f"half of the credentials for {spec.uri}: ")
    assert missing in said
    assert "geheim" not in said


def test_half_of_the_credentials_of_aws(
    spec: StoreSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    said = refused(spec, tmp_path)
    assert said.startswith(f"half of the credentials for {spec.uri}: ")
    assert "AWS_SECRET_ACCESS_KEY" in said


def test_a_profile_that_is_not_there(spec: StoreSpec, tmp_path: Path) -> None:
    assert refused(spec.model_copy(update={"profile": "nobody"}), tmp_path) == (
        f"no credentials for {spec.uri}: there is no profile 'nobody'; "
        "add it to ~/.aws/credentials or correct `profile:`"
    )


def test_a_role_that_is_refused(
    spec: StoreSpec, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-env")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim")
    error = (
        "<ErrorResponse><Error><Code>AccessDenied</Code><Message>not yours</Message></Error></ErrorResponse>"
    )
    proxy.fault("POST", answer=(403, error), times=9)
    assert refused(spec.model_copy(update={"role": ROLE}), tmp_path) == (
        f"no credentials for {spec.uri}: AccessDenied: not yours; check `role:`"
    )


def test_a_token_file_that_is_not_there(
    spec: StoreSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/no/token")
    assert refused(spec.model_copy(update={"role": ROLE}), tmp_path) == (
        "cannot read the web identity token /no/token (No such file or directory); correct AWS_WEB_IDENTITY_TOKEN_FILE"
    )


def test_missing_client_libraries_are_named(
    spec: StoreSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "minio", None)
    assert refused(spec, tmp_path) == "s3:// needs minio: pip install 'shipctl[s3]'"


def test_secrets_are_in_no_error(
    spec: StoreSpec,
    proxy: Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "geheim")
    with SmallParts(spec, tmp_path) as store:
        proxy.fault(answer=(403, s3_error("AccessDenied")), times=99)
        with pytest.raises(StoreError) as caught:
            store.write("key", b"value")
        seen: BaseException | None = caught.value
        while seen is not None:
            assert "geheim" not in f"{seen} {seen!r}"
            seen = seen.__cause__ or seen.__context__
        assert "geheim" not in f"{store._connection.identity.retrieve()!r}"
    assert "geheim" not in "".join(capfd.readouterr())


# -- where -------------------------------------------------------------------------------------------------


def with_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-env")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_the_endpoint_of_the_environment(
    spec: StoreSpec, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with_keys(monkeypatch)
    monkeypatch.setenv(name, proxy.endpoint)
    asked_as(spec.model_copy(update={"endpoint": None}), tmp_path, proxy)


@pytest.mark.parametrize(
    ("addressing", "bucket", "host"),
    [
        ("auto", "models", "models.s3.eu-west-1.amazonaws.com"),
        ("path", "models", "s3.eu-west-1.amazonaws.com"),
        ("auto", "models.example", "s3.eu-west-1.amazonaws.com"),
    ],
)
def test_amazon_s_own_addresses(
    tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, addressing: str, bucket: str, host: str
) -> None:
    with_keys(monkeypatch)
    asked: list[str] = []

    def nowhere(name: str, *_: object, **__: object) -> None:
        asked.append(name)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    spec = StoreSpec.model_validate(
        {"uri": f"s3://{bucket}", "region": "eu-west-1", "addressing": addressing}
    )
    with SmallParts(spec, tmp_path) as store:
        for call in (lambda: store.write("key", b""), lambda: list(store.unfinished(older_than=0))):
            with pytest.raises(StoreError):
                call()
    assert set(asked) == {host}


@pytest.mark.s3
def test_a_bucket_in_the_host_name(rgw: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, rgw)
    spec = rgw.spec(endpoint=rgw.endpoint.replace("127.0.0.1", VIRTUAL_HOST), addressing="virtual")
    real = socket.getaddrinfo
    asked: set[str] = set()

    def local(name: str, *more: Any, **named: Any) -> Any:
        asked.add(name)
        return real("127.0.0.1" if name.endswith(VIRTUAL_HOST) else name, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", local)
    with SmallParts(spec, tmp_path) as store:
        assert store.create("a b/ü.json", b"value")
        assert store.read("a b/ü.json") == b"value"
        content = bytes(store.part_size * 3)
        (tmp_path / "file").write_bytes(content)
        store.upload("file", tmp_path / "file", sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        store.download("file", tmp_path / "back", size=store.part_size * 3)
        assert [each.key for each in store.list("")] == ["a b/ü.json", "file"]
        store.delete(["file"])
        assert asked == {f"{store.bucket}.{VIRTUAL_HOST}"}


# -- trust -------------------------------------------------------------------------------------------------


@pytest.fixture
def secure(moto: S3Server, authority: Certificates, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    use(monkeypatch, moto)
    with proxy_to(moto.endpoint, tls=authority.context()) as proxy:
        yield proxy


@pytest.mark.parametrize("by", ["ca", "AWS_CA_BUNDLE"])
def test_an_authority_of_one_s_own(
    moto: S3Server, secure: Proxy, authority: Certificates, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    spec = moto.spec(endpoint=secure.endpoint, **({"ca": authority.authority.name} if by == "ca" else {}))
    if by != "ca":
        monkeypatch.setenv(by, str(authority.authority))
    with SmallParts(spec, authority.authority.parent) as store:
        store.write("key", b"value")
        assert [each.key for each in store.list("")] == ["key"]
        assert list(store.unfinished(older_than=0)) == []
    (sent,) = secure.seen("PUT")
    assert re.fullmatch("[0-9a-f]{64}", sent.headers["x-amz-content-sha256"]), "the payload is not signed"


def test_a_certificate_that_is_not_trusted_is_said_at_once(
    moto: S3Server, secure: Proxy, tmp_path: Path
) -> None:
    for call in ("check", "unfinished"):
        with (
            SmallParts(moto.spec(endpoint=secure.endpoint), tmp_path) as store,
            pytest.raises(StoreError) as caught,
        ):
            store.check() if call == "check" else list(store.unfinished(older_than=0))
        assert re.fullmatch(
            rf"cannot list {store.uri}/: the certificate of {secure.endpoint} is not trusted "
            r"\(.*certificate verify failed.*\); name the file of its authority with `ca:` or AWS_CA_BUNDLE",
            str(caught.value),
        )
    assert secure.requests == []


def test_an_authority_file_that_is_not_there(moto: S3Server, secure: Proxy, tmp_path: Path) -> None:
    spec = moto.spec(endpoint=secure.endpoint, ca="no.pem")
    with SmallParts(spec, tmp_path) as store, pytest.raises(SpecError) as caught:
        store.check()
    assert str(caught.value) == (
        f"there is no file {tmp_path / 'no.pem'} with the certificate authority of the store; correct `ca:`"
    )


def test_a_proxy_of_the_environment_is_used_for_others_but_not_for_this_machine(
    spec: StoreSpec, proxy: Proxy, moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_keys(monkeypatch)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    asked_as(spec, tmp_path, proxy)
    elsewhere = spec.model_copy(update={"endpoint": "http://s3.example:9000"})
    with SmallParts(elsewhere, tmp_path) as store, pytest.raises(StoreError, match="Connection refused"):
        store.check()
    assert os.environ["http_proxy"]
