"""The receiver of copies: what it asks, what it leaves out, and that nothing of it is left behind."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from shipctl.errors import StageError
from shipctl.release.router import Backend
from shipctl_plugins._triton import launcher
from shipctl_plugins._triton.comparator import Comparator
from shipctl_plugins._triton.comparator_arms import MOST_BYTES, SkippedError, grpc_copy, http_copy
from shipctl_plugins._triton.comparator_log import Line
from support_metrics import CANDIDATE, STABLE, Asked, Web, serving

slow = pytest.mark.slow

REQUEST = json.dumps({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}).encode()


def answer(*values: float) -> Callable[[Asked], tuple[int, str]]:
    output = {"name": "y", "shape": [1, len(values)], "datatype": "FP32", "data": list(values)}
    text = json.dumps({"model_name": "m", "model_version": "1", "outputs": [output]})
    return lambda _: (200, text)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@dataclass
class Setting:
    """Two servers that answer as a test says, a comparator of them, and a process that stands for the door."""

    comparator: Comparator
    stable: Web
    candidate: Web
    door: subprocess.Popen[bytes]

    def ensure(self, *, candidate: int | None = None, timeout: float = 30.0) -> Backend:
        return self.comparator.ensure(
            [backend(self.stable.port)],
            [backend(candidate or self.candidate.port)],
            stable_revision=STABLE,
            candidate_revision=CANDIDATE,
            timeout=timeout,
        )

    def lines(self) -> list[Line]:
        try:
            return [
                Line.model_validate_json(line)
                for line in self.comparator.comparisons.read_bytes().splitlines()
            ]
        except FileNotFoundError:
            return []

    def compared(self, count: int) -> list[Line]:
        assert until(lambda: sum(line.protocol is not None for line in self.lines()) >= count)
        return [line for line in self.lines() if line.protocol is not None]

    def left_out(self, kind: str) -> int:
        return sum(getattr(line, kind) for line in self.lines())


def backend(port: int) -> Backend:
    return Backend(name="r", http=f"127.0.0.1:{port}", grpc=f"127.0.0.1:{port}")


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    folder = tmp_path / "door"
    folder.mkdir()
    with ExitStack() as stack:
        door = stack.enter_context(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        stack.callback(door.kill)
        launcher.write_state(folder / "envoy.json", {}, door.pid)
        stable, candidate = (stack.enter_context(serving(Web(answer=answer(1.0, 2.0)))) for _ in range(2))
        comparator = Comparator(folder, log=lambda _: None)
        stack.callback(comparator.stop)
        yield Setting(comparator, stable, candidate, door)


def copy(
    to: Backend, body: bytes = REQUEST, path: str = "/v2/models/m/infer", encoding: str | None = None
) -> float:
    """Send a copy as the proxy does; return how long it was waited for."""
    connection = http.client.HTTPConnection(to.http, timeout=10)
    start = time.monotonic()
    connection.request("POST", path, body, {"content-encoding": encoding} if encoding else {})
    assert connection.getresponse().status == 200
    connection.close()
    return time.monotonic() - start


@slow
def test_both_are_asked_the_same_and_nobody_waits_for_it(setting: Setting) -> None:
    setting.stable.answer = slowly(answer(1.0, 2.0), 0.5)
    setting.candidate.answer = answer(1.0, 2.5)
    assert copy(setting.ensure(), path="/v2/models/m/versions/3/infer") < 0.4
    (line,) = setting.compared(1)
    assert (line.ok, line.protocol, line.stable, line.candidate) == (True, "http", STABLE, CANDIDATE)
    assert (line.max_abs, line.max_rel, line.samples, line.agree) == (0.5, 0.25, 1, 1)
    assert line.distributions["y"].mean_candidate == 1.75
    assert line.seconds_stable is not None
    assert line.seconds_stable > 0.5
    asked = [(each.path, each.body) for web in (setting.stable, setting.candidate) for each in web.asked]
    assert asked == [("/v2/models/m/infer", REQUEST.decode())] * 2


@slow
def test_only_what_stable_can_answer_is_evidence(setting: Setting) -> None:
    """And a candidate that fails, or answers with something else, is no reason to stop."""
    to = setting.ensure()
    setting.stable.answer = lambda _: (400, "no such input")
    copy(to)
    first = setting.compared(1)[0]
    assert (first.ok, first.error_stable) == (False, "status 400: no such input")
    assert setting.candidate.asked == []
    setting.stable.answer = answer(1.0)
    for number, (given, error) in enumerate(
        [
            (lambda _: (500, "broken"), "status 500: broken"),
            (lambda _: (200, "broken"), "an answer that cannot be read: "),
            (
                lambda _: (200, '{"outputs": []}'),
                "an answer that cannot be read: ValueError: it has no outputs",
            ),
        ]
    ):
        setting.candidate.answer = given
        copy(to)
        line = setting.compared(number + 2)[-1]
        assert (line.ok, line.error_stable) == (False, None)
        assert str(line.error_candidate).startswith(error)


@slow
def test_a_candidate_that_is_gone_or_hangs_is_told_from_one_that_answers(setting: Setting) -> None:
    setting.candidate.answer = lambda _: None
    copy(setting.ensure(timeout=1.0))
    assert setting.compared(1)[0].error_candidate == "no answer within 1.0 s"
    copy(setting.ensure(candidate=9, timeout=1.0))
    assert "not reached: " in str(setting.compared(2)[1].error_candidate)


@slow
def test_what_cannot_be_asked_again_is_counted(setting: Setting) -> None:
    to = setting.ensure()
    sequence = json.dumps({**json.loads(REQUEST), "parameters": {"sequence_id": 7}}).encode()
    copy(to, sequence)
    copy(to, path="/v2/models/m/generate")
    copy(to, encoding="gzip")
    assert until(lambda: setting.left_out("skipped") == 3)
    assert setting.stable.asked == []


@slow
def test_what_comes_too_fast_or_is_too_large_is_dropped_and_counted(setting: Setting) -> None:
    """Memory is bounded: by the queue, and by the bytes that are held."""
    setting.stable.answer = lambda _: None  # it hangs, and so do those who ask
    to = setting.ensure(timeout=20.0)
    large = b" " * (MOST_BYTES - len(REQUEST)) + REQUEST
    for _ in range(6):
        copy(to, large)
    assert until(lambda: setting.left_out("dropped") == 2)
    for _ in range(300):
        copy(to, REQUEST.ljust(10_000))
    assert until(lambda: setting.left_out("dropped") > 2)
    pid = setting.comparator.pid
    memory = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert memory < 400 * 2**20


@slow
def test_a_body_in_chunks_is_read(setting: Setting) -> None:
    to = setting.ensure()
    connection = http.client.HTTPConnection(to.http, timeout=10)
    for body in ([REQUEST[:5], REQUEST[5:]], [REQUEST]):
        connection.request("POST", "/v2/models/m/infer", iter(body), encode_chunked=True)
        assert connection.getresponse().read() == b""
    assert [line.ok for line in setting.compared(2)] == [True, True]
    connection.close()


@slow
def test_it_is_found_again_replaced_and_stopped(setting: Setting) -> None:
    first = setting.ensure()
    pid = setting.comparator.pid
    again = Comparator(setting.comparator.folder, log=lambda _: None)
    assert (
        again.ensure(
            [backend(setting.stable.port)],
            [backend(setting.candidate.port)],
            stable_revision=STABLE,
            candidate_revision=CANDIDATE,
        )
        == first
    )
    assert again.pid == pid
    assert setting.ensure(candidate=9) == first, "the proxy need not be told"
    replaced = setting.comparator.pid
    assert replaced not in {None, pid}
    os.kill(int(str(replaced)), signal.SIGKILL)
    assert until(lambda: not again.running)
    assert setting.ensure(candidate=9) == first
    assert setting.comparator.running
    assert again.stop() == ["the comparator of the door door"]
    assert not setting.comparator.running
    assert again.stop() == []


@slow
def test_it_ends_with_the_door(setting: Setting) -> None:
    setting.ensure()
    setting.door.kill()
    setting.door.wait()
    assert until(lambda: not setting.comparator.running, 15)


@slow
def test_it_ends_when_another_one_has_taken_its_place(setting: Setting) -> None:
    setting.ensure()
    pid = int(str(setting.comparator.pid))
    (setting.comparator.folder / "comparator.json").unlink()
    assert until(lambda: launcher.start_time(pid) is None, 5)


def test_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match=r"^there is nothing to compare: one of the two revisions has no replicas$"
    ):
        Comparator(tmp_path).ensure([backend(9)], [], stable_revision=STABLE, candidate_revision=CANDIDATE)


def slowly(give: Callable[[Asked], tuple[int, str]], seconds: float) -> Callable[[Asked], tuple[int, str]]:
    def answer(asked: Asked) -> tuple[int, str]:
        time.sleep(seconds)
        return give(asked)

    return answer


# -- copies -------------------------------------------------------------------------------------------------


def test_a_copy_over_grpc_loses_its_version_only() -> None:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name="m", model_version="3", id="7")
    output = request.outputs.add(name="y")
    output.parameters["classification"].int64_param = 3
    request.raw_input_contents.append(b"\0\1\2")
    made = grpc_copy(request.SerializeToString())
    request.model_version = ""
    assert made.body == request.SerializeToString()
    assert made.classified == frozenset({"y"})


def test_a_sequence_over_grpc_is_left_alone() -> None:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name="m")
    request.parameters["sequence_id"].int64_param = 7
    with pytest.raises(SkippedError, match=r"^part of a sequence$"):
        grpc_copy(request.SerializeToString())
    with pytest.raises(SkippedError, match=r"^no inference request$"):
        grpc_copy(b"\xff\xff")


def test_a_binary_body_is_kept_with_the_length_of_its_header() -> None:
    header = json.dumps({"outputs": [{"name": "y", "parameters": {"classification": 2}}]}).encode()
    headers = {"inference-header-content-length": str(len(header)), "host": "door", "content-type": "a/b"}
    made = http_copy("/v2/models/a%2Fb/versions/12/infer", headers, header + b"\0\1")
    assert made.path == "/v2/models/a%2Fb/infer"
    assert made.body == header + b"\0\1"
    assert made.headers == {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "a/b"}
    assert made.classified == frozenset({"y"})


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"outputs": [{}, 3]}'])
def test_a_body_that_is_no_request_is_left_out(body: bytes) -> None:
    with pytest.raises(SkippedError, match=r"^no inference request$"):
        http_copy("/v2/models/m/infer", {}, body)
