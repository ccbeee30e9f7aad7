"""Where the program `shipctl` starts: an apply that has nothing to do is answered before anything is imported."""

from __future__ import annotations

import sys

_ONLY_WITH = frozenset({"--json", "--events", "--display", "--verbose", "-v", "--help", "-h"})
"""Options that ask for more than the one line."""


def main() -> None:
    """Run the command line of this process."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["apply"] and _ONLY_WITH.isdisjoint(arguments):
        from shipctl.engine.uptodate import MESSAGE, is_up_to_date

        if is_up_to_date(arguments):
            if "-q" not in arguments and "--quiet" not in arguments:
                sys.stdout.write(f"{MESSAGE}: no file that the last apply looked at has changed\n")
            sys.exit(0)
    from shipctl.cli.main import main as command_line

    command_line()
