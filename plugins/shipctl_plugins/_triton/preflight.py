"""The preflight: a candidate is asked golden samples in a second, short-lived server; what serves is not touched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shipctl.errors import StageError
from shipctl.release.target import Candidate
from shipctl.stages.verdicts import Outcome, Verdict
from shipctl_plugins._triton.environment import TRITON_VERSION, ServerEnvironment
from shipctl_plugins._triton.golden import Judgement, Tolerance, ask_golden
from shipctl_plugins._triton.probe import record_probe
from shipctl_plugins._triton.releases import Releases
from shipctl_plugins._triton.replicas import ARGUMENTS
from shipctl_plugins._triton.server import TritonServer


def run_preflight(
    environment: ServerEnvironment,
    releases: Releases,
    candidate: Candidate,
    *,
    tolerance: Tolerance,
    timeout: float,
) -> Judgement:
    """Load a published candidate in a server of its own and judge its answers; ``timeout`` is in seconds, for each.

    A version that does not load is a verdict that fails, with what the server's log says where the API hides the
    reason. The answer to one sample is recorded, for later looks at the replicas.

    :raises StageError: if the candidate is not published, or no server can be started
    """
    model, subject = candidate.repository.model, candidate.repository.source
    known = releases.model(model)
    entry = known.by_revision(candidate.revision) if known else None
    if entry is None:
        message = f"{model} {candidate.version} is gone from the target; run again"
        raise StageError(message)
    with _scratch(releases.folder / "preflight" / model) as folder:
        releases.lay_out(model, entry.number, folder / "repository")
        server = TritonServer.start(
            environment,
            repository=folder / "repository",
            folder=folder / "server",
            bound=True,
            arguments=ARGUMENTS,
        )
        try:
            server.load(model, timeout=timeout)
            judgement = _ask(server, candidate, tolerance, timeout)
            if judgement.passed and judgement.probe:
                record_probe(server.api, model, judgement.probe, releases.probe(model, entry.number))
        except StageError as error:
            verdict = Verdict(gate="preflight", outcome=Outcome.FAIL, message=str(error), subject=subject)
            return Judgement((verdict,), 0, "", None)
        finally:
            server.stop()
        return judgement


def blessing(environment: ServerEnvironment) -> str:
    """Say what a preflight here is worth: the versions and the device that answered."""
    return f"Triton {TRITON_VERSION}, onnxruntime {environment.onnxruntime}, CPU"


def _ask(server: TritonServer, candidate: Candidate, tolerance: Tolerance, timeout: float) -> Judgement:
    repository = candidate.repository
    if candidate.golden is None:
        verdict = Verdict(
            gate="preflight",
            outcome=Outcome.INCONCLUSIVE,
            message="the release has no golden samples, so that it loads is all that is known of it",
            subject=repository.source,
        )
        return Judgement((verdict,), 0, "", None)
    return ask_golden(
        server.endpoints,
        model=repository.model,
        signature=repository.signature,
        max_batch_size=repository.max_batch_size,
        golden=candidate.golden.path,
        tolerance=tolerance,
        timeout=timeout,
        where="preflight",
        subject=repository.source,
    )


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, and remove it and what a killed preflight left."""
    if stale := TritonServer.attach(folder / "server"):
        stale.stop(timeout=0)
    TritonServer.clean_up(folder / "server")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
