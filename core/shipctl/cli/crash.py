"""What is kept of a bug: one file with the traceback, and nothing that could be a secret."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from shipctl import __version__

EXIT_CODE = 70
"""`EX_SOFTWARE` of BSD's sysexits.h: the fault is the program's own."""


def write_report(exc: BaseException, arguments: Sequence[str], folder: Path) -> Path | None:
    """Write the traceback of ``exc`` below the `.shipctl` nearest to ``folder``; None if no place takes it.

    Neither environment variables nor local variables are in it, and of the command line only the words before
    any value: ``--set`` may carry what nobody should see.
    """
    words = [word for word in arguments[:2] if not word.startswith("-") and "=" not in word]
    text = "\n".join(
        [
            f"shipctl {__version__}, Python {platform.python_version()}, {platform.platform()}",
            f"command: shipctl {' '.join(words)}",
            "",
            "".join(traceback.format_exception(exc)),
        ]
    )
    name = f"crash-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.txt"
    for place in (_state_folder(folder), Path(tempfile.gettempdir())):
        if place is None:
            continue
        try:
            path = place / name
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError:
            continue
        return path
    sys.stderr.write(text)
    return None


def _state_folder(folder: Path) -> Path | None:
    """Return the `.shipctl` that is there; making one would change which project a spec belongs to."""
    for candidate in (folder, *folder.parents):
        if (candidate / ".shipctl").is_dir():
            return candidate / ".shipctl"
    return None
