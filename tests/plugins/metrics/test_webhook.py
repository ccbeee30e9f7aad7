"""A service that is asked, and everything that it may answer instead."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import SpecError, StageError, UnavailableError
from shipctl.release.metrics import MetricContext
from shipctl.release.references import validated
from shipctl.stages.context import CheckContext
from shipctl.testing.metrics import MetricProviderConformance
from shipctl_plugins.metrics.webhook import Webhook, WebhookOptions
from support_metrics import CANDIDATE, Asked, Web, elapsed

pytestmark = pytest.mark.slow

TOKEN = "kUsh4-token/secret"
GOOD = {"requests": 3, "errors": 1, "durations": [0.1, 0.2], "times": [1.5, 1.75], "coverage": 0.5}


def webhook(ctx: MetricContext, url: str, **options: Any) -> Webhook:
    return Webhook(WebhookOptions.model_validate({"url": url, "timeout": "500ms", **options}), ctx)


def test_a_service_is_told_the_window_and_its_answer_taken(ctx: MetricContext, web: Web) -> None:
    web.answer = lambda _: (200, json.dumps({**GOOD, "value": 0.93}))
    found = webhook(ctx, f"{web.url}/measure?key=1").query(CANDIDATE, 1.0, 2.0)
    [asked] = web.asked
    assert (asked.method, asked.path, asked.headers["content-type"]) == (
        "POST",
        "/measure?key=1",
        "application/json",
    )
    assert json.loads(asked.body) == {
        "pipeline": "digits",
        "model": "digits",
        "revision": CANDIDATE,
        "version": "4",
        "since": 1.0,
        "until": 2.0,
    }
    assert (found.requests, found.errors, found.coverage, found.value) == (3, 1, 0.5, 0.93)
    assert (found.durations, found.times) == ((0.1, 0.2), (1.5, 1.75))
    assert found.query.startswith(f'webhook {web.url}/measure {{"pipeline"'), (
        "the address is kept without its query"
    )
    assert found.raw.startswith('{"requests": 3')


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            "",
            "did not answer with a JSON object (Expecting value: line 1 column 1 (char 0)); it said nothing",
        ),
        ("<html>Login</html>", "(Expecting value: line 1 column 1 (char 0)); it said <html>Login</html>"),
        ("[1, 2]", "did not answer with a JSON object (it is a list); it said [1, 2]"),
        ('{"requests": 3, "errors": 0, "value": NaN}', "(NaN is not JSON); it said"),
        ('{"requests": 3}', "answered wrongly: errors field required; it said"),
        ('{"requests": 3, "errors": 4}', "answered wrongly: there are more errors (4) than requests (3)"),
        ('{"requests": 3, "errors": 0, "ok": true}', "answered wrongly: ok is not known"),
        ('{"requests": "3", "errors": 0}', "answered wrongly: requests input should be a valid integer"),
        ('{"requests": true, "errors": 0}', "answered wrongly: requests input should be a valid integer"),
        ('{"requests": -1, "errors": 0}', "requests input should be greater than or equal to 0"),
        (
            '{"requests": 1, "errors": 0, "durations": [1e999]}',
            "durations[0] input should be a finite number",
        ),
        ('{"requests": 1, "errors": 0, "durations": [-1]}', "should be greater than or equal to 0"),
        ('{"requests": 1, "errors": 0, "durations": [1, 2]}', "more durations (2) than requests (1)"),
        ('{"requests": 1, "errors": 0, "durations": [1], "times": []}', "there are 0 times of 1 durations"),
        ('{"requests": 1, "errors": 0, "coverage": 1.5}', "should be less than or equal to 1"),
        ("[" * 100_000, "did not answer with a JSON object"),
    ],
)
def test_garbage_is_an_error_that_shows_it(ctx: MetricContext, web: Web, answer: str, said: str) -> None:
    web.answer = lambda _: (200, answer)
    with pytest.raises(StageError) as caught:
        webhook(ctx, web.url).query(CANDIDATE, 1.0, 2.0)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("status", [201, 204, 301, 302, 307, 401, 404, 500, 503])
def test_another_status_is_an_error(ctx: MetricContext, web: Web, status: int) -> None:
    web.answer = lambda _: (status, "" if status == 204 else "no such thing")
    web.headers = {"Location": f"{web.url}/elsewhere"}
    with pytest.raises(StageError, match=f"webhook {web.url} answered with status {status}, not 200: "):
        webhook(ctx, web.url).query(CANDIDATE, 1.0, 2.0)
    assert len(web.asked) == 1, "a redirect was followed"


def test_a_server_that_hangs_is_left_in_time(ctx: MetricContext, web: Web) -> None:
    web.answer = lambda _: None
    with pytest.raises(StageError) as caught:
        webhook(ctx, web.url).query(CANDIDATE, 1.0, 2.0)
    assert str(caught.value) == (
        f"{web.url} did not answer within 0.5 s; see whether it works, or raise `timeout`"
    )


def test_a_server_that_drips_is_left_in_time(ctx: MetricContext, web: Web) -> None:
    """Each byte comes within the timeout, the whole never."""
    web.answer = lambda _: (200, json.dumps(GOOD))
    web.drip = 0.1

    def ask() -> None:
        with pytest.raises(StageError, match=r"did not answer within 0\.5 s"):
            webhook(ctx, web.url).query(CANDIDATE, 1.0, 2.0)

    assert elapsed(ask) < 1.5


def test_a_port_that_takes_and_says_nothing(ctx: MetricContext) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(StageError, match=r"did not answer within 0\.5 s"):
            webhook(ctx, url).query(CANDIDATE, 1.0, 2.0)


def test_nobody_there(ctx: MetricContext, web: Web) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with pytest.raises(StageError) as caught:
        webhook(ctx, url).query(CANDIDATE, 1.0, 2.0)
    assert str(caught.value) == f"{url} cannot be asked: connection refused; see whether it runs there"


def test_half_an_answer_is_none(ctx: MetricContext, web: Web) -> None:
    """The part that came is JSON by itself."""
    web.answer = lambda _: (200, '{"requests": 3, "errors": 1}')
    web.declared = 1000
    with pytest.raises(
        StageError, match=r"cannot be asked: IncompleteRead\(28 bytes read, 972 more expected\)"
    ):
        webhook(ctx, web.url).query(CANDIDATE, 1.0, 2.0)


def test_a_token_is_sent_and_never_seen(
    ctx: MetricContext, web: Web, monkeypatch: pytest.MonkeyPatch, check_ctx: CheckContext
) -> None:
    monkeypatch.setenv("HOOK_TOKEN", f"{TOKEN}\n")
    web.answer = lambda asked: (200, json.dumps({"requests": 0, "errors": 0, "echo": asked.headers}))
    options = WebhookOptions(url=web.url, token_env="HOOK_TOKEN")
    Webhook.check(options, check_ctx)
    with pytest.raises(StageError) as caught:
        Webhook(options, ctx).query(CANDIDATE, 1.0, 2.0)
    assert web.asked[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert "Bearer ***" in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_token_that_is_not_there_is_told_before_anything_runs(
    ctx: MetricContext, web: Web, check_ctx: CheckContext
) -> None:
    options = WebhookOptions(url=web.url, token_env="NO_SUCH_TOKEN")
    message = "the environment variable NO_SUCH_TOKEN is not set; export the token in it"
    with pytest.raises(UnavailableError) as caught:
        Webhook.check(options, check_ctx)
    assert str(caught.value) == message
    with pytest.raises(StageError) as later:
        Webhook(options, ctx).query(CANDIDATE, 1.0, 2.0)
    assert str(later.value) == message
    assert web.asked == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "'url' is missing in with; add it"),
        ({"url": "hook.example.org"}, "is not an address; write one such as https://host:9090"),
        ({"url": "ftp://hook"}, "is not an address; write one such as https://host:9090"),
        ({"url": "http://h:99999"}, "is not an address; write one such as https://host:9090"),
        ({"url": "https://h/a\nb"}, "is not an address; write one such as https://host:9090"),
        (
            {"url": "https://me:secret@hook"},
            "an address must not hold a password; put a token into a variable and name it in token_env",
        ),
        (
            {"url": "http://hook.example.org/m?k=1", "token_env": "T"},
            "the token of T would go to http://hook.example.org/m unencrypted; use https://",
        ),
        ({"url": "http://h", "timeout": "0s"}, "timeout 0s is not above 0 s and at most 60 s"),
        ({"url": "http://h", "timeout": "61s"}, "timeout 61s is not above 0 s and at most 60 s"),
        ({"url": "http://h", "token": "x"}, "'token' is not known"),
        ({"url": "http://h", "token_env": "ab/cd=="}, "never write the token itself"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        validated(WebhookOptions, options, "metric provider 'webhook'")
    assert str(caught.value).startswith("metric provider 'webhook': ")
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_missing_file_of_authorities_is_told(web: Web, check_ctx: CheckContext) -> None:
    options = WebhookOptions(url=web.url, ca=Path("ca.pem"))
    with pytest.raises(
        UnavailableError, match=r"the file of authorities .*/ca.pem does not exist; correct `ca`"
    ):
        Webhook.check(options, check_ctx)


def test_threads_of_requests_that_were_left_end(ctx: MetricContext, web: Web) -> None:
    import threading

    web.answer = lambda _: (200, "x" * 10_000)
    web.drip = 0.02
    for _ in range(3):
        with pytest.raises(StageError):
            webhook(ctx, web.url, timeout="100ms").query(CANDIDATE, 1.0, 2.0)
    deadline = time.monotonic() + 5
    while any(thread.name == "shipctl-metrics" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread still waits for the server"
        time.sleep(0.02)


class TestConformance(MetricProviderConformance):
    """The kit's promises, of a service that counts rightly."""

    name, plugin, revision, covers, secret = "webhook", Webhook, CANDIDATE, False, TOKEN

    @pytest.fixture
    def provider(self, ctx: MetricContext, web: Web, monkeypatch: pytest.MonkeyPatch) -> Webhook:
        self.web, self.clock, self.happened = web, 1000.0, list[tuple[float, int, int]]()
        self.gone = False
        web.answer = self.answer
        monkeypatch.setenv("HOOK_TOKEN", TOKEN)
        return webhook(ctx, web.url, token_env="HOOK_TOKEN")

    def answer(self, asked: Asked) -> tuple[int, str] | None:
        question = json.loads(asked.body)
        found = [each for each in self.happened if question["since"] <= each[0] < question["until"]]
        said = {"requests": sum(each[1] for each in found), "errors": sum(each[2] for each in found)}
        return None if self.gone else (200, json.dumps(said))

    def happen(self, provider: Any, requests: int, errors: int) -> tuple[float, float]:
        self.clock += 20
        self.happened.append((self.clock - 10, requests, errors))
        return self.clock - 20, self.clock

    def take_away(self, provider: Any) -> None:
        self.gone = True
