"""Stages that break every promise there is to break."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import Field

from shipctl import (
    GateError,
    PluginError,
    Stage,
    StageContext,
    StageError,
    StageInputs,
    StageOutputs,
    UnavailableError,
)
from shipctl_test_stages.artifacts import Other, Thing
from shipctl_test_stages.basic import Labelled, NoInputs, Outputs


class How(Labelled):
    """What to do."""

    how: str = Field(default="well", description="What to do.")
    secret: str = Field(default="", description="A secret to give away.")


class WrongKind(StageOutputs):
    """An output of another kind than declared."""

    thing: Other


class Surplus(StageOutputs):
    """One output more than declared."""

    thing: Thing
    more: Thing


class Misbehave(Stage[How, NoInputs, Outputs]):
    """Misbehave in the way that is asked for."""

    api_version = 1

    def run(self, inputs: NoInputs, ctx: StageContext) -> Any:
        self.options.began()
        path = ctx.workdir / "thing.txt"
        path.write_text("fine")
        act = getattr(self, f"_{self.options.how.replace('-', '_')}")
        return act(ctx, path) or Outputs(thing=Thing.at(path))

    def _well(self, ctx: StageContext, path: Path) -> Any:
        return None

    # -- dying -----------------------------------------------------------------------------------------------

    def _segfault(self, ctx: StageContext, path: Path) -> Any:
        print("about to fall")
        os.kill(os.getpid(), signal.SIGSEGV)

    def _exit(self, ctx: StageContext, path: Path) -> Any:
        os._exit(7)

    def _sys_exit(self, ctx: StageContext, path: Path) -> Any:
        sys.exit("enough")

    def _raise(self, ctx: StageContext, path: Path) -> Any:
        raise ValueError("no good")

    def _raise_bare(self, ctx: StageContext, path: Path) -> Any:
        raise RuntimeError

    def _stage_error(self, ctx: StageContext, path: Path) -> Any:
        raise StageError("the model has no head")

    def _plugin_error(self, ctx: StageContext, path: Path) -> Any:
        raise PluginError("the plugin is broken")

    def _gate_error(self, ctx: StageContext, path: Path) -> Any:
        raise GateError("not good enough")

    def _unavailable(self, ctx: StageContext, path: Path) -> Any:
        raise UnavailableError("there is no moon tonight")

    # -- taking too much ---------------------------------------------------------------------------------------

    def _hang(self, ctx: StageContext, path: Path) -> Any:
        time.sleep(600)

    def _hang_hard(self, ctx: StageContext, path: Path) -> Any:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        time.sleep(600)

    def _fill(self, ctx: StageContext, path: Path) -> Any:
        with path.open("wb") as stream:
            for _ in range(600):
                stream.write(b"0" * 100_000)
                stream.flush()
                time.sleep(0.005)

    def _fill_at_once(self, ctx: StageContext, path: Path) -> Any:
        path.write_bytes(b"0" * 3_000_000)

    # -- leaving things behind ---------------------------------------------------------------------------------

    def _fork(self, ctx: StageContext, path: Path) -> Any:
        subprocess.Popen(["sleep", "600"])

    def _daemonise(self, ctx: StageContext, path: Path) -> Any:
        reads, writes = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execvp("sleep", ["sleep", "600"])
            os._exit(0)
        os.close(writes)
        os.wait()
        os.read(reads, 1)  # until the last one closes it, which is replaced
        os.close(reads)

    # -- wrong outputs -----------------------------------------------------------------------------------------

    def _undeclared(self, ctx: StageContext, path: Path) -> Any:
        return Surplus(thing=Thing.at(path), more=Thing.at(path))

    def _wrong_kind(self, ctx: StageContext, path: Path) -> Any:
        return WrongKind(thing=Other.at(path))

    def _not_outputs(self, ctx: StageContext, path: Path) -> Any:
        return {"thing": path}

    def _missing_file(self, ctx: StageContext, path: Path) -> Any:
        return Outputs(thing=Thing.at(ctx.workdir / "never.txt"))

    def _missing_root(self, ctx: StageContext, path: Path) -> Any:
        return Outputs(thing=Thing())

    def _outside(self, ctx: StageContext, path: Path) -> Any:
        return Outputs(thing=Thing.at(Path("/etc/hostname")))

    def _symlink(self, ctx: StageContext, path: Path) -> Any:
        folder = ctx.workdir / "folder"
        folder.mkdir()
        (folder / "link.txt").symlink_to("/etc/hostname")
        return Outputs(thing=Thing.at(folder))

    def _symlink_inside(self, ctx: StageContext, path: Path) -> Any:
        link = ctx.workdir / "link.txt"
        link.symlink_to(path)
        return Outputs(thing=Thing.at(link))

    def _pipe(self, ctx: StageContext, path: Path) -> Any:
        folder = ctx.workdir / "folder"
        folder.mkdir()
        os.mkfifo(folder / "pipe")
        return Outputs(thing=Thing.at(folder))

    # -- giving secrets away -----------------------------------------------------------------------------------

    def _print_secret(self, ctx: StageContext, path: Path) -> Any:
        secret = self.options.secret
        ctx.log(f"logged {secret}")
        print(f"printed {secret} and {base64.b64encode(secret.encode()).decode()}")
        print(f"shouted {secret}", file=sys.stderr)

    def _raise_secret(self, ctx: StageContext, path: Path) -> Any:
        raise ValueError(f"cannot log in with {self.options.secret}")

    def _die_with_secret(self, ctx: StageContext, path: Path) -> Any:
        print(f"last word {self.options.secret}", flush=True)
        os._exit(3)

    def _store_secret(self, ctx: StageContext, path: Path) -> Any:
        path.write_text(f"token={self.options.secret}\n")

    def _store_secret_encoded(self, ctx: StageContext, path: Path) -> Any:
        path.write_bytes(b"x" + base64.b64encode(b"user:" + self.options.secret.encode()))

    def _secret_in_field(self, ctx: StageContext, path: Path) -> Any:
        return Outputs(thing=Thing.at(path, note=f"made with {self.options.secret}"))

    def _secret_in_name(self, ctx: StageContext, path: Path) -> Any:
        folder = ctx.workdir / "folder"
        folder.mkdir()
        (folder / self.options.secret).write_text("x")
        return Outputs(thing=Thing.at(folder))


class MisbehaveInline(Misbehave):
    """The same in shipctl's own process, for what does not take it down."""

    isolation = "inline"


class FlakyOptions(Labelled):
    """How often to fail."""

    counter: str = Field(description="A file that counts the attempts.")
    failures: int = Field(default=1, description="Attempts that fail.")
    gate: bool = Field(default=False, description="Fail with a gate's no.")


class Flaky(Stage[FlakyOptions, StageInputs, Outputs]):
    """Fail some times, then work."""

    api_version = 1
    isolation = "inline"

    def run(self, inputs: StageInputs, ctx: StageContext) -> Outputs:
        self.options.began()
        counter = Path(self.options.counter)
        tried = int(counter.read_text()) if counter.exists() else 0
        counter.write_text(str(tried + 1))
        if tried < self.options.failures:
            if self.options.gate:
                raise GateError("no")
            raise StageError(f"attempt {tried + 1} failed")
        path = ctx.workdir / "thing.txt"
        path.write_text("fine")
        return Outputs(thing=Thing.at(path))
