"""Sweeps: `run_sweep(spec) -> SweepOutcome`. `coordinator` is its loop, `proposals` says which trial comes next."""

from __future__ import annotations

from regtune.sweep.coordinator import SweepOutcome
from regtune.sweep.run import run_sweep

__all__ = ["SweepOutcome", "run_sweep"]
