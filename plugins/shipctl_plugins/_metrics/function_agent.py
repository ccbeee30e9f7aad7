"""Runs in a process of its own: calls a function with what stands on standard input, and writes what it returns.

Standard library only. It ends when its standard input is closed, which happens at the latest when shipctl ends.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)  # it was started in a group of its own: what the function started ends too


def _load(call: dict[str, Any]) -> Callable[..., Any]:
    sys.path.insert(0, call["folder"])
    found: Any
    if call["file"]:
        spec = importlib.util.spec_from_file_location("shipctl_metric_function", call["file"])
        if spec is None or spec.loader is None:
            message = f"{call['file']} cannot be imported"
            raise ImportError(message)
        found = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = found
        spec.loader.exec_module(found)
    else:
        found = importlib.import_module(call["module"])
    for part in call["function"].split("."):
        found = getattr(found, part)
    function: Callable[..., Any] = found
    if not callable(function):
        message = f"{call['function']} is a {type(found).__name__}, not a function"
        raise TypeError(message)
    return function


def main() -> None:
    """Answer with one line of JSON: `{"said": …}` or `{"error": …, "trace": …}`."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the function prints is no answer
    call = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        function = _load(call)
        said = None if call["asked"] is None else function(**call["asked"])
        text = json.dumps({"said": said})
    except BaseException as exc:  # noqa: BLE001  (it is told, whatever it is)
        text = json.dumps({"error": f"{type(exc).__name__}: {exc}", "trace": traceback.format_exc()})
    answers.write(text + "\n")
    answers.flush()
    os._exit(0)  # threads that the function began have nothing more to say


if __name__ == "__main__":
    main()
