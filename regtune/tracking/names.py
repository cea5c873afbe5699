"""All names that regtune writes into MLflow: tags, metrics and artifacts.

Params have no names of their own: they are the keys of a configuration, searched ones as the board shows them.
"""

from __future__ import annotations

from typing import Final

from regtune.study.record import State

# Tags of experiments and runs
KIND: Final = "regtune.kind"
"""What a run is: a parent, STUDY or DECISION, or a child: TRIAL, REPLICATE under a decision, or RETRAINING; no list of
trials has the last two.
"""
STUDY: Final = "study"
TRIAL: Final = "trial"
RETRAINING: Final = "retraining"
DECISION: Final = "decision"
REPLICATE: Final = "replicate"
PROMOTION: Final = "promotion"
"""The run of a promotion: the training of what is registered, its gates and its figures."""
JOURNAL_KIND: Final = "journal"
RETRAINED: Final = "train-"
"""The uid of a retraining begins so; no study has it, and no clean-up takes it for a study that is gone."""
PROMOTED: Final = "promotion-"
"""That of a promotion, likewise: its run and its model stay when the study is deleted."""
SWEEP: Final = "regtune.sweep"
"""The sweep's name, on the experiment; it finds the experiment again when somebody has renamed it."""
STUDY_TAG: Final = "regtune.study_uid"
TRIAL_UID: Final = "regtune.trial_uid"
NUMBER: Final = "regtune.number"
"""The trial's number in its study: `regtune show STUDY NUMBER`."""
STATE: Final = "regtune.state"
END_REASON: Final = "regtune.end_reason"
MESSAGE: Final = "regtune.message"
MIX: Final = "regtune.mix"
CONTROL: Final = "regtune.control"
REQUESTED: Final = "regtune.requested"
ATTEMPT: Final = "regtune.attempt"
RETRY_OF: Final = "regtune.retry_of"
WORKER: Final = "regtune.worker"
SEED: Final = "regtune.seed"
CONFIG_DIGEST: Final = "regtune.config_digest"
DATA: Final = "regtune.data"
METRIC: Final = "regtune.metric"
GOAL: Final = "regtune.goal"
VERSION: Final = "regtune.version."
"""Prefix of the tags that say which versions of Python, TensorFlow, Keras and Optuna a study ran with."""
BEST_RUN: Final = "regtune.best_run_id"
BEST_NUMBER: Final = "regtune.best_number"
STANDING: Final = "regtune.decision"
"""How the decision judges a trial: chosen, tied, beaten or diverged; of no trial that was not replicated."""
CANDIDATE: Final = "regtune.candidate"
"""Of a replicate: which configuration was trained once more, in the words of CHOSEN and ANSWER."""
INDEX: Final = "regtune.replicate"
"""Of a replicate: its index, from 0; those of one index and one VARY have the same seed and the same split."""
VARY: Final = "regtune.vary"
"""What differs between the replicates of a candidate: both, seed or split."""
CHOSEN: Final = "regtune.chosen"
"""Of a decision: the candidate that it chose, `trial 16: dropout 0.133 + L2 1e-4` or `control dropout`; ANSWER is the
simplest of all tied ones, controls outside the search among them.
"""
ANSWER: Final = "regtune.answer"
LEVEL: Final = "regtune.level"
PRACTICAL: Final = "regtune.practical"
CANDIDATES: Final = "regtune.candidates"
END: Final = "regtune.end"
ARTIFACT: Final = "regtune.sha256."
"""Prefix of the tags with the SHA-256 of a run's artifacts; written after the artifact itself."""
NOTE_DIGEST: Final = "regtune.note_sha256"
"""Of the description as regtune wrote it: one that a person has changed since stays as it is."""

# Tags of registered models and their versions, which have STUDY_NAME, STUDY_TAG, NUMBER, CONFIG_DIGEST and DATA, too
JOURNAL: Final = "regtune.journal"
"""Of a registered model: the run whose params are the moves of its aliases; a model without it is another program's."""
MANIFEST_DIGEST: Final = "regtune.manifest_sha256"
"""Of a version: SHA-256 of its manifest, which has those of all other files."""
STUDY_NAME: Final = "regtune.study"
TEST_ACCURACY: Final = "regtune.test_accuracy"
OPENINGS: Final = "regtune.test_openings"
"""Of a version: how often its study had opened the test set, this time included."""
FORCED: Final = "regtune.forced"
"""Of a version that a gate refused: why it was registered all the same."""
MOVE: Final = "move."
"""Prefix of a journal's params, from `move.1` on. MLflow's params are written once: of two who write one, one wins."""
MOVED: Final = "regtune.moved"
"""Of a journal: the number of the last move whose aliases are set."""

WITHDRAWN: Final = "regtune.withdrawn."
"""Prefix of a journal's tags that say why a move was given up, by the move's number."""
MODEL: Final = "regtune.model"
"""Of a journal: the registered model whose moves it has; of a promotion: the one that it is for."""
PROCESS: Final = "regtune.process"
"""Of a promotion: who runs it, so that one whose process is gone is told from one that goes on."""

# Aliases
CHAMPION: Final = "champion"
PREVIOUS: Final = "previous"
"""The version that was champion before the last move."""

# Tags that MLflow itself reads
NOTE: Final = "mlflow.note.content"
PARENT: Final = "mlflow.parentRunId"
SOURCE_NAME: Final = "mlflow.source.name"
SOURCE_TYPE: Final = "mlflow.source.type"
EXPERIMENT_KIND: Final = "mlflow.experimentKind"
PRIMARY_METRIC: Final = "mlflow.experiment.primaryMetric.name"
PRIMARY_METRIC_GREATER: Final = "mlflow.experiment.primaryMetric.greaterIsBetter"
DATA_CONTEXT: Final = "mlflow.data.context"
MODEL_VERSIONS: Final = "mlflow.modelVersions"
"""Of a logged model: the versions made of it, as JSON, which its page links."""

# Single points at the end, beside METRICS, which have one an epoch
BEST_EPOCH: Final = "best/epoch"
BEST_GAP: Final = "best/generalization_gap"
SPARSITY: Final = "weights/sparsity"
L2_NORM: Final = "weights/l2_norm"
# of a decision; BEST figures beside them are the means of the chosen candidate
HALF_WIDTH: Final = "decision/half_width"
"""Of the confidence interval around the mean of the ranked metric."""
AGAINST_NONE: Final = "decision/against_none"
AGAINST_NONE_HALF_WIDTH: Final = "decision/against_none_half_width"
OPTIMISM: Final = "decision/optimism"
REPLICATES: Final = "decision/replicates"
TRAININGS: Final = "decision/trainings"

# Artifacts of a run
CONFIG: Final = "config.yaml"
SWEEP_FILE: Final = "sweep.yaml"
"""Of a study's own run: its sweep file in the canonical form."""
DECISION_FILE: Final = "decision.json"
"""Of a decision's run: all of it."""
GATES_FILE: Final = "gates.json"
"""Of a promotion's run."""


def best(metric: str) -> str:
    """The single point that says `metric` of the kept weights: ``best/val_accuracy``."""
    return f"best/{metric}"


def evidence(figure: str) -> str:
    """The single point of a figure that replicates alone have: ``evidence/ece``."""
    return f"evidence/{figure}"


def tested(figure: str) -> str:
    """The single point of a figure over the test images: ``test/accuracy``."""
    return f"test/{figure}"


def status(state: State, end_reason: str | None) -> str:
    """What MLflow calls a trial in `state`. A trial that waits to be run again was interrupted: KILLED."""
    if state == "FAIL":
        return "KILLED" if end_reason == "stopped" else "FAILED"
    return {"RUNNING": "RUNNING", "COMPLETE": "FINISHED", "PRUNED": "KILLED", "WAITING": "KILLED"}[state]
