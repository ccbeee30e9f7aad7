"""Paths as Triton can take them."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from pathlib import Path

from shipctl.errors import StageError

_PLAIN = re.compile(r"[A-Za-z0-9/._+=@%,:~-]+")


def plain_path(folder: Path) -> Path:
    """Return a path of plain characters that leads to ``folder``, which need not exist yet.

    The python backend splits the command line of its stub at spaces and reads paths in an ASCII locale. A folder
    with anything else in its path is reached through a link in the user's own folder below the temporary one; the
    link is made again by every call, in case that was cleaned.

    :raises StageError: if that folder belongs to somebody else
    """
    if _PLAIN.fullmatch(str(folder)):
        return folder
    links = Path(tempfile.gettempdir()) / f"shipctl-{os.getuid()}"
    links.mkdir(mode=0o700, exist_ok=True)
    status = links.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        message = f"{links} belongs to somebody else; move the project to a path without spaces, or remove it"
        raise StageError(message)
    link = links / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    if not link.is_symlink() or link.readlink() != folder:
        twin = link.with_suffix(f".{os.getpid()}")
        twin.unlink(missing_ok=True)
        twin.symlink_to(folder)
        twin.replace(link)
    return link
