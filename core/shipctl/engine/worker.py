"""The worker process: runs one stage after another, as it is asked on its request pipe.

    python -m shipctl.engine.worker REQUEST_FD ANSWER_FD

A request and an answer are a line of JSON each (:class:`~shipctl.engine.calls.Call`, ``Answer``). What the
stage prints goes to the worker's own stdout and stderr, which shipctl reads line by line.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from shipctl.engine.calls import Answer, Call, Placed, call_stage, context_of, load_class, read_inputs
from shipctl.errors import ShipctlError


def peak_memory() -> int | None:
    """Return the highest resident memory of this process since :func:`reset_peak`, in bytes (Linux)."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    return None


def reset_peak() -> None:
    """Let the kernel forget the peak of the stage before (proc(5), clear_refs)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _log(line: str) -> None:
    print(line, flush=True)  # noqa: T201  (stdout is the log)


def answer(call: Call) -> Answer:
    """Run the stage of a call; whatever it raises becomes part of the answer."""
    reset_peak()
    os.chdir(call.workdir)
    try:
        cls = load_class(call.stage)
        options = cls.options_model.model_validate(call.options)
        made = call_stage(cls(options), read_inputs(cls, call.inputs), context_of(call, _log))
        return Answer(
            outputs={name: Placed.of(item) for name, item in made.items()}, peak_memory=peak_memory()
        )
    except ShipctlError as exc:
        return Answer(error=str(exc), kind=type(exc).__name__, peak_memory=peak_memory())
    except Exception as exc:  # noqa: BLE001  (a plugin may raise anything; that is its failure, not ours)
        text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
        return Answer(error=text, trace=traceback.format_exc(), peak_memory=peak_memory())


def main() -> int:
    """Answer requests until the pipe closes."""
    requests = os.fdopen(int(sys.argv[1]), encoding="utf-8")
    answers = os.fdopen(int(sys.argv[2]), "w", encoding="utf-8")
    home = Path.cwd()
    for line in requests:
        reply = answer(Call.model_validate_json(line))
        sys.stdout.flush()
        sys.stderr.flush()
        os.chdir(home)
        answers.write(reply.model_dump_json() + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
