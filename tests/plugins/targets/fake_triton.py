"""A server process that answers as Triton was seen to, in milliseconds: run by the real launcher, killed for real.

The text of `model.onnx` is the model. In it, `unloadable` does not load, `crashing` ends the process at start, `late`
listens no sooner than a file `listen` lies in the repository, `shy` stops giving answers once a file `shy` lies there.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ARGUMENTS = dict(argument.lstrip("-").partition("=")[::2] for argument in sys.argv[1:])
ROOT = Path(ARGUMENTS["model-repository"])
LOADED: dict[str, tuple[str, str]] = {}
WHY: dict[str, str] = {}


def load(model: str) -> None:
    config = (ROOT / model / "config.pbtxt").read_text()
    found = re.search(r"versions: \[(\d+)\]", config)
    assert found
    text = (ROOT / model / found[1] / "model.onnx").read_text()
    if "crashing" in text:
        sys.exit("E0101 00:00:00.0 1 main.cc:1] the model crashes")
    if "unloadable" in text:
        WHY[model] = "out of memory,\n  or so"
        return
    LOADED[model] = found[1], text


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def say(self, status: int, body: Any, raw: bytes = b"") -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Inference-Header-Content-Length", str(len(content)))
        self.send_header("Content-Length", str(len(content) + len(raw)))
        self.end_headers()
        self.wfile.write(content + raw)

    def do_GET(self) -> None:
        model = next(iter(re.findall(r"/models/([^/]+)", self.path)), "")
        if self.path == "/v2":
            self.say(200, {"name": ARGUMENTS["id"], "version": "2.51.0"})
        elif self.path.endswith("/config"):
            config = (ROOT / model / "config.pbtxt").read_text()
            revision = re.findall(r'"shipctl.revision" value { string_value: "([^"]*)"', config)[-1]
            self.say(200, {"parameters": {"shipctl.revision": {"string_value": revision}}})
        else:
            self.say(200 if not model or model in LOADED else 400, {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        model = next(iter(re.findall(r"/models/([^/]+)", self.path)), "")
        if self.path.endswith("/index"):
            states = [
                {"name": name, "version": "1", "state": "UNAVAILABLE", "reason": why}
                for name, why in WHY.items()
            ]
            ready = [
                {"name": name, "version": number, "state": "READY"} for name, (number, _) in LOADED.items()
            ]
            self.say(200, [*states, *ready])
        elif self.path.endswith("/unload"):
            LOADED.pop(model, None)
            self.say(200, {})
        elif self.path.endswith("/load"):
            load(model)
            self.say(*((200, {}) if model in LOADED else (400, {"error": f"failed to load '{model}'"})))
        elif model not in LOADED or (ROOT / "shy").exists():
            self.say(500, {"error": "no answer"})
        else:
            number, text = LOADED[model]
            raw = text.encode()
            output = {
                "name": "y",
                "datatype": "BYTES",
                "shape": [1],
                "parameters": {"binary_data_size": len(raw)},
            }
            self.say(200, {"model_version": number, "outputs": [output]}, raw)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True


def main() -> None:
    wanted = ARGUMENTS.get("load-model")
    if wanted:
        load(wanted)
    while any("late" in text for _, text in LOADED.values()) and not (ROOT / "listen").exists():
        time.sleep(0.02)
    try:
        server = Server(("127.0.0.1", int(ARGUMENTS["http-port"])), Handler)
    except OSError as error:
        sys.exit(f"E0101 00:00:00.0 1 main.cc:1] failed to start HTTP service: {error}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
