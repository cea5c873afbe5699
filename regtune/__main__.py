"""`python -m regtune` is `regtune`."""

from __future__ import annotations

from regtune.cli import main

main()
