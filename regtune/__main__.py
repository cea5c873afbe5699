"""The command line as a module: `python -m regtune`."""

from __future__ import annotations

from regtune.cli import main

main()
