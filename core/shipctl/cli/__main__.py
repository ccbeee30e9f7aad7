"""`python -m shipctl.cli` is the program `shipctl`, where its script is not on the path."""

from __future__ import annotations

from shipctl.cli.start import main

if __name__ == "__main__":
    main()
