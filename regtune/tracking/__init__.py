"""MLflow's runs: derived from the studies and brought up to date at any time.

`tracker` does it in a process of its own while a sweep runs, `sync` on demand; both through `projection`. Importing
this package costs no import of MLflow.
"""

from __future__ import annotations

from regtune.tracking.facts import DataFacts, ParentState, RetrainedFrom, StudyFacts
from regtune.tracking.tracker import Tracker

__all__ = ["DataFacts", "ParentState", "RetrainedFrom", "StudyFacts", "Tracker"]
