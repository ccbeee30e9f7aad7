"""Secrets: given to a stage, taken out of everything that is shown, never stored."""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shipctl import UnavailableError, load_spec
from shipctl.engine.secrets import Secrets
from support_engine import EngineProject

VALUE = "hunter2-Xy7+pQ9zzz"
NEEDLES = (
    VALUE.encode(),
    base64.b64encode(VALUE.encode()).rstrip(b"="),
    base64.b64encode(b"user:" + VALUE.encode())[8:-4],
)
HEAD = "secrets: {token: {env: TOKEN}}"


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", VALUE)


def secret_spec(project: EngineProject, how: str, uses: str = "misbehave") -> None:
    project.spec(
        f'- {{id: s, uses: {uses}, with: {{how: {how}, secret: "${{{{ secrets.token }}}}"}}}}', head=HEAD
    )


@pytest.mark.parametrize("uses", ["misbehave", "misbehave-inline"])
def test_a_printed_secret_is_masked(
    project: EngineProject, capfd: pytest.CaptureFixture[str], uses: str
) -> None:
    secret_spec(project, "print-secret", uses)
    run = project.apply()
    assert run.code == 0, run.messages
    shown = capfd.readouterr()
    assert sorted(run.log) == ["s: logged ***", "s: printed *** and ***", "s: shouted ***"]
    assert not any(needle.decode() in run.text() + shown.out + shown.err for needle in NEEDLES)
    assert project.holding(*NEEDLES) == []


@pytest.mark.parametrize(("how", "message"), [
    ("raise-secret", "ValueError: cannot log in with ***"),
    ("die-with-secret", "its worker process ended with exit code 3; its last words: last word ***"),
])  # fmt: skip
def test_a_secret_in_an_error_is_masked(project: EngineProject, how: str, message: str) -> None:
    secret_spec(project, how)
    run = project.apply()
    assert run.messages == {"s": message}
    assert run.result.message == f"s: {message}"
    assert VALUE not in run.text()
    assert project.holding(*NEEDLES) == []


@pytest.mark.parametrize("how", ["store-secret", "store-secret-encoded", "secret-in-field", "secret-in-name"])
def test_a_secret_in_an_output_fails_and_nothing_is_stored(project: EngineProject, how: str) -> None:
    secret_spec(project, how)
    run = project.apply()
    assert run.code == 1
    assert "contains the value of secret 'token'; nothing was stored" in run.messages["s"]
    assert VALUE not in run.text()
    assert project.blobs() == []
    assert project.results() == []
    assert project.holding(*NEEDLES) == []


@pytest.mark.slow
def test_the_command_line_shows_and_keeps_no_secret(project: EngineProject) -> None:
    project.spec(
        """
        - {id: s, uses: misbehave, with: {how: print-secret, secret: "${{ secrets.token }}"}}
        - {id: t, uses: misbehave, needs: [], with: {how: raise-secret, secret: "${{ secrets.token }}"}}
        """,
        head=HEAD,
    )
    commands = (
        ("plan", "spec.yaml", "-o", "plan.json"), ("plan", "spec.yaml", "--json"),
        ("-v", "apply", "spec.yaml", "--events", "events.jsonl"), ("apply", "spec.yaml", "--json"),
        ("report", "spec.yaml"), ("history", "spec.yaml"),
    )  # fmt: skip
    said = [project.command(*command)[1] for command in commands]
    said += [project.shipctl("apply", "spec.yaml")[1]]
    assert "cannot log in with ***" in said[-1]
    assert "cannot log in with ***" in said[2]
    assert (project.root / "plan.json").exists()
    assert "***" in (project.root / "events.jsonl").read_text()
    assert not any(needle.decode() in text for text in said for needle in NEEDLES)
    assert project.holding(*NEEDLES) == []


def test_a_secret_is_in_the_fingerprint_as_its_expression(
    project: EngineProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret_spec(project, "well")
    assert project.apply().ran == [""]
    monkeypatch.setenv("TOKEN", "another-value")
    assert project.apply().ran == []
    project.edit("secrets.token }}", "secrets.other }}")
    project.edit("token: {env: TOKEN}", "other: {env: TOKEN}")
    assert project.reasons()["s"] != []


def test_a_release_gives_no_secret_away(project: EngineProject) -> None:
    project.spec(
        """
        - {id: a, uses: make}
        - {id: d, uses: file-deploy, with: {fail_at: shifting, secret: " with ${{ secrets.token }}"}}
        """,
        head=HEAD,
    )
    run = project.apply()
    assert run.messages["d"].startswith("shifting went wrong with ***")
    assert VALUE not in run.text()
    assert project.holding(*NEEDLES) == [], "the records of a release are kept too"


def with_secret(project: EngineProject, source: str) -> EngineProject:
    return project.spec(
        """
        - {id: s, uses: misbehave-inline, with: {secret: "${{ secrets.token }}"}}
        - {id: other, uses: make, needs: []}
        """,
        head=f"secrets: {{token: {{{source}}}}}",
    )


def test_a_secret_that_cannot_be_had_fails_its_stage_alone(project: EngineProject) -> None:
    run = with_secret(project, "command: ['false']").apply()
    assert run.statuses == {"s": "failed", "other": "done"}
    assert run.messages["s"].endswith("secret 'token': `false` failed (CalledProcessError)")
    assert run.code == 2


@pytest.mark.parametrize(("source", "message"), [
    ("env: NOT_SET", "secret 'token' is not set: export NOT_SET"),
    ("file: nowhere.txt", "secret 'token' is not there: no file nowhere.txt beside the spec"),
])  # fmt: skip
def test_a_secret_that_is_not_there_is_told_before_anything_runs(
    project: EngineProject, source: str, message: str
) -> None:
    plan = with_secret(project, source).plan()
    assert [node.unavailable for node in plan.nodes] == [message, None]
    with pytest.raises(UnavailableError, match=message):
        project.apply(plan)
    assert project.trace() == []


def test_a_secret_that_is_too_short_is_refused(
    project: EngineProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "abc")
    secret_spec(project, "well", "misbehave-inline")
    assert project.apply().messages["s"] == (
        "secret 'token' has fewer than 4 characters; that cannot be kept out of logs"
    )


def test_secrets_come_from_files_and_commands(project: EngineProject) -> None:
    (project.root / "secret.txt").write_text("from-a-file\n")
    project.spec(
        "- {uses: make}", head="secrets: {f: {file: secret.txt}, c: {command: [echo, from-a-command]}}"
    )
    secrets = Secrets(load_spec(project.path))
    assert dict(secrets) == {"f": "from-a-file", "c": "from-a-command"}
    with pytest.raises(KeyError):
        secrets["g"]


class Known(Secrets):
    """Secrets with one value, fetched."""

    def __init__(self, value: str) -> None:
        super().__init__(SimpleNamespace(spec=SimpleNamespace(secrets={"token": None})))  # type: ignore[arg-type]
        self._value = value
        self["token"]

    def _fetch(self, name: str) -> str:
        return self._value


@settings(max_examples=60)
@given(
    value=st.text(st.characters(codec="utf-8", exclude_characters="*"), min_size=4, max_size=30),
    around=st.lists(st.text(max_size=5), min_size=2, max_size=4),
    prefix=st.binary(max_size=7),
    form=st.sampled_from(["plain", "base64", "urlsafe", "json", "ascii", "repr", "quoted"]),
)
def test_no_form_of_a_secret_survives(value: str, around: list[str], prefix: bytes, form: str) -> None:
    from urllib.parse import quote

    secrets = Known(value)
    shown = {
        "plain": value,
        "base64": base64.b64encode(prefix + value.encode()).decode(),
        "urlsafe": base64.urlsafe_b64encode(prefix + value.encode()).decode(),
        "json": json.dumps(value, ensure_ascii=False)[1:-1],
        "ascii": json.dumps(value)[1:-1],
        "repr": repr(value)[1:-1],
        "quoted": quote(value),
    }[form]
    text = shown.join(around)
    redacted = secrets.redact(text)
    assert value not in redacted
    if form in {"plain", "json", "ascii", "repr", "quoted"}:
        assert shown not in redacted
    else:
        inner = shown.rstrip("=")
        skip = -(-len(prefix) * 8 // 6)  # characters that depend on the prefix
        assert inner[skip + 1 : -1] not in redacted


def pem(algorithm: object) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    form = algorithm.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # type: ignore[attr-defined]
    return str(form.decode())


def test_the_public_half_of_a_private_key_is_no_secret() -> None:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    for key in (ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)):
        value = pem(key)
        secrets = Secrets.__new__(Secrets)
        secrets._values = {"key": value}
        needles = [needle for needle in secrets.forbidden() if len(needle) == 64]
        der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        aligned = [base64.b64encode(der[shift:]) for shift in range(3)]
        assert not any(needle in text for needle in needles for text in aligned)
        assert any(needle.decode() in value for needle in needles), "what is private is still looked for"
