"""What a study says, said in MLflow: runs, curves and artifacts that can be derived from the study at any
time.

`writer` does it in a process of its own while a sweep runs, `sync` at once and on demand; both through
`projection`. `server` shows it. Importing this package costs no import of MLflow; `projection` and `sync`
do it.
"""

from __future__ import annotations

from regtune.tracking.facts import DataFacts, Origin, ParentState, StudyFacts
from regtune.tracking.writer import TrackingWriter

__all__ = ["DataFacts", "Origin", "ParentState", "StudyFacts", "TrackingWriter"]
