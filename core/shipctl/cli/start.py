"""Where the program `shipctl` starts: an apply that has nothing to do is answered before anything is imported."""

from __future__ import annotations

import sys

_PLAIN = frozenset({"-e", "--environment", "--set", "--until", "-j", "--jobs", "-q", "--quiet", "--no-color"})
"""Options that do not ask for more than the one line; with any other, the ordinary way answers."""


def main() -> None:
    """Run the command line of this process."""
    arguments = sys.argv[1:]
    options = {argument for argument in arguments if argument.startswith("-")}
    if arguments[:1] == ["apply"] and options <= _PLAIN:
        from shipctl.engine.uptodate import MESSAGE, is_up_to_date

        if is_up_to_date(arguments):
            if "-q" not in arguments and "--quiet" not in arguments:
                sys.stdout.write(f"{MESSAGE}: no file that the last apply looked at has changed\n")
            sys.exit(0)
    from shipctl.cli.main import main as command_line

    command_line()
