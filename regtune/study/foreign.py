"""What other programs put into a study of regtune's: it counts for nothing until regtune has trained it itself."""

from __future__ import annotations

from optuna.trial import FrozenTrial, TrialState, create_trial

from regtune.study.record import RECORD, trial_uid


def seen(trial: FrozenTrial, study: str) -> FrozenTrial:
    """A trial of the study with this uid, as the coordinator and Optuna's samplers and pruners are to see it.

    What another program has trained is a failed trial of which nothing is known; `board.tables` calls it FOREIGN.
    A record that was copied from another trial is none.
    """
    record = trial.user_attrs.get(RECORD)
    if isinstance(record, dict) and record.get("uid") == trial_uid(study, trial.number):
        return trial
    if record is not None:
        trial.user_attrs = {}
    if not trial.state.is_finished() and (trial.state is TrialState.WAITING or not trial.params):
        return trial  # regtune begins it
    found = create_trial(state=TrialState.FAIL)
    found.number, found._trial_id = trial.number, trial._trial_id
    found.datetime_start = found.datetime_complete = None
    return found
