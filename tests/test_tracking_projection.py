"""MLflow says what the study says: states, curves, params, tags, inputs, artifacts; and nothing twice."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tracking_records as records
from mlflow import MlflowClient
from mlflow.entities import Run

from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import METRICS, RegularizationConfig, TrialConfig
from regtune.storage.mlflow import connect
from regtune.storage.schema import TRACKING
from regtune.study.record import BUDGET, CREATED, DATA, ENDED, ORIGIN, RECORD, SPEC, STUDY_UID
from regtune.tracking import names
from regtune.tracking.projection import Projection
from regtune.tracking.runs import SqlReader
from regtune.tracking.studies import RetrainedFrom, StudyFacts, Trial
from regtune.tracking.views import KEY

ROOT = Path(__file__).resolve().parent.parent


class Store:
    """A home with an MLflow database. One client serves all tests: each new one looks at the schema for a second."""

    def __init__(self, home: Path, empty: bytes) -> None:
        home.mkdir()
        self.database, self.artifacts = home / "mlflow.db", home / "artifacts"
        self.database.write_bytes(empty)
        self.client: MlflowClient = connect(f"sqlite:///{self.database}", self.artifacts)
        self._reader = SqlReader(TRACKING.engine(f"sqlite:///{self.database}"))
        self._empty = sqlite3.connect(":memory:")
        with closing(sqlite3.connect(self.database)) as database:
            database.backup(self._empty)

    def clear(self) -> None:
        """Begin anew."""
        with closing(sqlite3.connect(self.database)) as database:
            self._empty.backup(database)
        shutil.rmtree(self.artifacts, ignore_errors=True)

    def project(self, facts: StudyFacts, *trials: Trial) -> Projection:
        """Project trials as a process that has just been started does."""
        projection = Projection(facts, self.artifacts, self._reader, self.client)
        for trial in trials:
            projection.trial(*trial)
        return projection

    def runs(self) -> list[Run]:
        """All runs, parents first."""
        experiments = [found.experiment_id for found in self.client.search_experiments()]
        found = self.client.search_runs(experiments, max_results=1000)
        return sorted(found, key=lambda run: int(run.data.tags.get(names.NUMBER, -1)))

    def run(self, number: int) -> Run:
        """The run of one trial."""
        (found,) = [run for run in self.runs() if run.data.tags.get(names.NUMBER) == str(number)]
        return self.client.get_run(found.info.run_id)

    def points(self, run: Run, name: str) -> list[tuple[int, float, int]]:
        """Step, value and time of each point of a curve."""
        found = self.client.get_metric_history(run.info.run_id, name)
        return [(point.step, point.value, point.timestamp) for point in found]

    def contents(self) -> list[str]:
        """Every row of every table."""
        with sqlite3.connect(self.database) as database:
            return sorted(database.iterdump())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: bytes) -> Store:
    return Store(tmp_path_factory.mktemp("store") / "home", empty_mlflow)


@pytest.fixture
def store(shared: Store) -> Store:
    shared.clear()
    return shared


def test_a_study_written_twice_changes_no_row(store: Store) -> None:
    trials = [*records.study(10), records.failed(10, "stopped")]
    trials[2] = records.with_model(trials[2], store.artifacts)
    store.project(records.facts(), *trials).study("FINISHED", 5, records.BEGIN_MS + 900_000)
    first = store.contents()
    second = store.project(records.facts(), *trials)
    second.study("FINISHED", 5, records.BEGIN_MS + 900_000)
    assert store.contents() == first
    assert second.writes == 0


def test_written_epoch_by_epoch_or_at_once_mlflow_says_the_same(store: Store) -> None:
    def said() -> Any:
        run = store.run(0)
        histories = {name: store.points(run, name) for name in run.data.metrics}
        own = {key: value for key, value in run.data.tags.items() if key.startswith("regtune.")}
        return histories, run.data.params, own, run.info.status, run.info.start_time, run.info.end_time

    number, state, over = records.complete(0)
    live = store.project(records.facts())
    for epochs in range(13):
        live.trial(0, "RUNNING", records.after(records.started(0), epochs))
    live.trial(number, state, over)
    followed = said()
    store.clear()
    store.project(records.facts(), (number, state, over))
    assert said() == followed


def test_every_epoch_is_a_point_and_the_figures_of_the_kept_weights_are_single_ones(store: Store) -> None:
    _, _, record = records.complete(0)
    store.project(records.facts(), (0, "COMPLETE", record))
    run = store.run(0)
    for name in METRICS:
        points = zip(range(1, record.epochs + 1), record.history[name], record.epoch_ended_ms, strict=True)
        assert store.points(run, name) == list(points)
    assert record.kept is not None
    kept = {name: record.kept.figures[name] for name in ("val_cross_entropy", "val_accuracy")}
    expected = {
        **{f"best/{name}": value for name, value in {**kept, "epoch": record.kept.epoch}.items()},
        "best/generalization_gap": record.kept.generalization_gap,
        "weights/sparsity": record.kept.sparsity,
        "weights/l2_norm": record.kept.l2_norm,
    }
    assert {name: value for name, value in run.data.metrics.items() if "/" in name} == expected
    for name in expected:
        assert [step for step, *_ in store.points(run, name)] == [0]


@pytest.mark.parametrize("metric", ["val_cross_entropy", "val_accuracy"])
def test_a_pruned_trial_has_the_figures_of_its_best_epoch_by_the_primary_metric(
    store: Store, metric: str
) -> None:
    number, state, record = records.failed(0, "pruned", epochs=9)
    values = record.history[metric]
    best = values.index(max(values) if metric == "val_accuracy" else min(values))
    assert 0 < best < 8
    projection = store.project(records.facts(metric=metric), (number, state, record))
    assert {name: value for name, value in store.run(0).data.metrics.items() if "/" in name} == {
        "best/val_cross_entropy": record.history["val_cross_entropy"][best],
        "best/val_accuracy": record.history["val_accuracy"][best],
        "best/epoch": best + 1,
    }
    tags = store.client.get_experiment(projection.experiment_id).tags
    assert tags[names.PRIMARY_METRIC] == f"best/{metric}"
    assert tags[names.PRIMARY_METRIC_GREATER] == str(metric == "val_accuracy")
    assert ("higher is better" in tags[names.NOTE]) is (metric == "val_accuracy")


def test_a_point_that_is_not_finite_is_left_out(store: Store) -> None:
    record = records.after(records.started(0), 3)
    broken = dict.fromkeys(METRICS, float("nan")) | {"loss": float("inf"), "accuracy": 0.1}
    record = record.with_epoch(broken, 0.3, (record.started_ms or 0) + 2000)
    ended = replace(record, end_reason="non_finite", ended_ms=records.BEGIN_MS + 9000)
    store.project(records.facts(), (0, "FAIL", ended))
    assert [len(store.points(store.run(0), name)) for name in ("loss", "accuracy")] == [3, 4]


def test_a_study_is_a_parent_and_each_trial_a_child_with_the_status_of_its_state(store: Store) -> None:
    ends = {"pruned": "KILLED", "stopped": "KILLED", "non_finite": "FAILED", "worker_died": "FAILED"}
    trials = [records.failed(number, reason) for number, reason in enumerate(ends)]
    trials += [records.complete(4), (5, "WAITING", records.after(records.started(5), 2))]
    trials += [(6, "RUNNING", records.started(6))]
    store.project(records.facts(), *trials)
    parent, *children = store.runs()
    assert (parent.data.tags[names.STUDY_TAG], parent.data.tags[names.KIND]) == ("study-1", names.STUDY)
    assert {run.data.tags[names.PARENT] for run in children} == {parent.info.run_id}
    assert [run.data.tags[names.TRIAL_UID] for run in children] == [
        f"study-1-{number}" for number in range(7)
    ]
    assert children[1].info.run_name == "#001 dropout 0.2 + L2 1e-4"
    statuses = (*ends.values(), "FINISHED", "KILLED", "RUNNING")
    for (_, state, record), run, status in zip(trials, children, statuses, strict=True):
        assert run.info.status == status
        assert run.data.tags[names.STATE] == state
        assert run.data.tags.get(names.END_REASON) == record.end_reason


def test_an_interrupted_trial_goes_on_in_its_own_run_and_lasts_as_long_as_its_last_attempt(
    store: Store,
) -> None:
    early = records.after(records.started(0), 4)
    store.project(records.facts(), (0, "RUNNING", early), (0, "WAITING", early))
    assert store.run(0).info.status == "KILLED"
    store.project(records.facts(), (0, "RUNNING", records.after(records.started(0), 1)))
    assert store.run(0).info.status == "RUNNING"
    number, state, over = records.complete(0)
    began_again = (over.started_ms or 0) + 3_600_000
    over = replace(over, again_ms=began_again, ended_ms=began_again + 9_000)
    store.project(records.facts(), (number, state, over))
    run = store.run(0)
    assert (run.info.status, run.info.start_time) == ("FINISHED", over.started_ms)
    assert run.info.end_time - run.info.start_time == 9_000
    assert len(store.points(run, "val_loss")) == over.epochs
    assert len(store.runs()) == 2
    assert store.project(records.facts(), (number, state, over)).writes == 0


def searched(run: Run) -> dict[str, str]:
    return {name: value for name, value in run.data.params.items() if name in records.COLUMNS}


def test_every_trial_has_its_whole_configuration_as_params_and_controls_say_theirs(store: Store) -> None:
    trials = records.study(9)
    store.project(records.facts(), *trials)
    _, *children = store.runs()
    assert searched(children[3]) == {"dropout": "0.0", "l1": "1e-05", "l2": "0.0", "batchnorm": "none"}
    assert searched(children[5])["batchnorm"] == "before_activation"
    rest = {name: value for name, value in children[3].data.params.items() if name not in records.COLUMNS}
    assert rest == {
        **{"hidden": "128-64", "activation": "relu"},
        **{"optimizer": "adam", "learning_rate": "0.001", "momentum": "0.0", "weight_decay": "0.004"},
        **{"batch_size": "32", "max_epochs": "30", "fused": "True"},
        **{"monitor": "val_cross_entropy", "patience": "4", "min_delta": "0.0"},
        **{"data.name": "mnist", "data.validation": "0.2", "data.split_seed": "42", "seed": "1003"},
    }
    number, _, record = trials[8]
    assert float(store.run(number).data.params["dropout"]) == record.parameters["dropout"]


def test_what_differs_between_the_layers_is_a_param_of_each_and_early_stopping_may_be_off(
    store: Store,
) -> None:
    layers = RegularizationConfig(dropout=(0.1, 0.2), batchnorm=("none", "before_activation"))
    network = TrialConfig(regularization=layers, early_stopping=None)
    facts = replace(records.facts(), parameters=("dropout.1", "dropout.2", "patience"))
    store.project(facts, (0, "RUNNING", replace(records.started(0), config=network, parameters={})))
    found = store.run(0).data.params
    assert (found["dropout.1"], found["dropout.2"]) == ("0.1", "0.2")
    assert (found["batchnorm.1"], found["batchnorm.2"]) == ("none", "before_activation")
    assert found["early_stopping"] == "off"
    assert not {"dropout", "batchnorm", "patience", "monitor"} & found.keys()


def test_a_run_of_the_version_before_gets_the_params_that_it_lacks_and_keeps_its_own(store: Store) -> None:
    store.project(records.facts(), records.complete(0))
    with sqlite3.connect(store.database) as database:
        database.execute("DELETE FROM params WHERE key NOT IN ('dropout', 'l1', 'l2', 'batchnorm')")
        database.execute("UPDATE params SET value = '0' WHERE key = 'l1'")
    store.project(records.facts(), records.complete(0))
    assert searched(store.run(0)) == {"dropout": "0.2", "l1": "0", "l2": "0.0001", "batchnorm": "none"}
    assert store.run(0).data.params["learning_rate"] == "0.001"
    assert store.project(records.facts(), records.complete(0)).writes == 0


def test_the_study_s_own_run_has_its_sweep_file_and_says_what_is_fixed_and_what_is_searched(
    store: Store, tmp_path: Path
) -> None:
    spec = SweepSpec.load(
        ROOT / "sweeps" / "quickstart.yaml", ["parameters.patience={'values': [1, 3]}", "method=random"]
    )
    attributes = {SPEC: spec.identity(), STUDY_UID: "study-1", DATA: asdict(records.facts().data)}
    file = tmp_path / "sweep.yaml"
    for cap in (32, 40):  # a budget may be raised
        attributes[BUDGET] = {"run_cap": cap, "timeout": None, "keep_models": 5, "decide": spec.decide}
        store.project(StudyFacts.of("quickstart", attributes)).study("RUNNING", None)
        (parent,) = store.runs()
        store.client.download_artifacts(parent.info.run_id, "sweep.yaml", str(tmp_path))
        assert SweepSpec.load(file) == spec.model_copy(update={"run_cap": cap})
    found = parent.data.params
    keys = ("method", "hidden", "learning_rate", "data.name", "seed")
    assert [found[key] for key in keys] == ["random", "128-64", "0.001", "mnist-5k", "42"]
    assert (found["l1"], found["patience"]) == ("1e-7 to 0.001, log, or 0 (off)", "1, 3")
    (again := store.project(StudyFacts.of("quickstart", attributes))).study("RUNNING", None)
    assert again.writes == 0


def test_data_sets_are_inputs_with_their_digest_and_part(store: Store) -> None:
    store.project(records.facts(), records.complete(0))
    inputs = sorted(store.run(0).inputs.dataset_inputs, key=lambda entry: entry.dataset.name)
    for entry, part, count in zip(inputs, ("training", "validation"), (3200, 800), strict=True):
        assert (names.DATA_CONTEXT, part) in {(tag.key, tag.value) for tag in entry.tags}
        assert entry.dataset.name == f"mnist-5k {part}"
        assert records.DIGEST.startswith(entry.dataset.digest)
        assert records.DIGEST in entry.dataset.source
        assert f'"images": {count}' in entry.dataset.profile


def test_the_configuration_and_the_model_are_artifacts(store: Store, tmp_path: Path) -> None:
    trial = records.with_model(records.complete(0), store.artifacts)
    store.project(records.facts(), trial)
    run = store.run(0)
    folder = Path(store.client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    assert (folder / "config.yaml").read_text() == trial[2].config.to_yaml()
    assert (folder / "model.keras").read_bytes() == b"weights"
    assert run.data.tags["regtune.sha256.model.keras"] == hashlib.sha256(b"weights").hexdigest()
    assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(store.artifacts / "runs")


def test_a_model_that_a_better_one_displaced_and_one_with_another_digest_are_not_in_mlflow(
    store: Store,
) -> None:
    dropped, changed = (records.with_model(records.complete(number), store.artifacts) for number in range(2))
    store.project(records.facts(), dropped)
    (store.artifacts / "trials" / changed[2].uid / "model.keras").write_bytes(b"other weights")
    store.project(records.facts(), (*dropped[:2], replace(dropped[2], artifacts={})), changed)
    for number in range(2):
        run = store.run(number)
        assert [entry.path for entry in store.client.list_artifacts(run.info.run_id)] == ["config.yaml"]
        assert "regtune.sha256.model.keras" not in run.data.tags
        assert ("digest" in run.data.tags.get(names.MESSAGE, "")) is (number == 1)


def test_the_parent_has_the_winner_and_its_figures_and_a_study_that_goes_on_may_have_another(
    store: Store,
) -> None:
    projection = store.project(records.facts(), *records.study(8))
    projection.study("RUNNING", None)
    assert store.runs()[0].info.status == "RUNNING"
    projection.study("FINISHED", 5, records.BEGIN_MS + 900_000)
    parent, winner = store.runs()[0], store.run(5)
    assert (parent.info.status, parent.info.end_time) == ("FINISHED", records.BEGIN_MS + 900_000)
    assert parent.data.tags[names.BEST_RUN] == winner.info.run_id
    assert parent.data.metrics == {name: value for name, value in winner.data.metrics.items() if "/" in name}
    assert "#005 batch norm before" in parent.data.tags[names.NOTE]
    again = store.project(records.facts())
    again.study("RUNNING", None)
    parent = store.runs()[0]
    assert (parent.info.status, parent.data.tags[names.STATE]) == ("RUNNING", "RUNNING")
    again.trial(*records.complete(8, dropout=0.1, l2=0.0, batchnorm="before_activation"))
    again.study("FINISHED", 8)
    figures = [run.data.metrics["best/val_cross_entropy"] for run in (store.runs()[0], store.run(8))]
    assert figures[0] == figures[1]
    assert store.runs()[0].data.tags[names.BEST_NUMBER] == "8"
    for _ in range(2):  # the one before again, and nothing more to write
        third = store.project(records.facts())
        third.study("FINISHED", 5, records.BEGIN_MS + 900_000)
        parent, winner = store.runs()[0], store.run(5)
        assert parent.data.tags[names.BEST_NUMBER] == "5"
        assert parent.data.metrics == {
            name: value for name, value in winner.data.metrics.items() if "/" in name
        }
    assert third.writes == 0


def test_what_a_second_attempt_does_without_is_no_longer_said(store: Store) -> None:
    store.project(records.facts(), records.failed(0, "error"))
    assert names.MESSAGE in store.run(0).data.tags
    for _ in range(2):
        projection = store.project(records.facts(), records.complete(0))
        assert names.MESSAGE not in store.run(0).data.tags
    assert projection.writes == 0


def test_a_run_that_a_lost_answer_has_doubled_is_one_again(store: Store) -> None:
    store.project(records.facts(), *records.study(8))
    first = store.runs()[0]
    tags = {name: value for name, value in first.data.tags.items() if name != "mlflow.runName"}
    store.client.create_run(first.info.experiment_id, first.info.start_time + 1, tags, first.info.run_name)
    assert len([run for run in store.runs() if run.data.tags[names.KIND] == names.STUDY]) == 2
    trial, name = {names.TRIAL_UID: "study-1-7", names.STUDY_TAG: "study-1"}, store.run(7).info.run_name
    store.client.create_run(first.info.experiment_id, records.BEGIN_MS + 990_000, trial, "again")
    store.project(records.facts(), records.study(8)[7]).study("FINISHED", 5)
    same = [run for run in store.runs() if run.data.tags.get(names.TRIAL_UID) == "study-1-7"]
    assert [run.info.run_name for run in same] == [name]
    (left,) = [run for run in store.runs() if run.data.tags[names.KIND] == names.STUDY]
    assert (left.info.run_id, left.info.status) == (first.info.run_id, "FINISHED")


def test_a_description_that_a_person_wrote_stays(store: Store) -> None:
    projection = store.project(records.facts(), *records.study(8))
    projection.study("RUNNING", None)
    parent = store.runs()[0]
    store.client.set_tag(parent.info.run_id, names.NOTE, "Mine.")
    store.client.set_experiment_tag(parent.info.experiment_id, names.NOTE, "Mine too.")
    store.project(records.facts()).study("FINISHED", 5)
    assert store.runs()[0].data.tags[names.NOTE] == "Mine."
    assert store.client.get_experiment(parent.info.experiment_id).tags[names.NOTE] == "Mine too."


def test_two_studies_of_one_sweep_share_an_experiment_whatever_it_is_called_by_now(store: Store) -> None:
    projection = store.project(records.facts(), records.complete(0))
    store.client.rename_experiment(projection.experiment_id, "renamed by hand")
    other = replace(records.complete(0)[2], uid="study-2-0")
    second = store.project(records.facts(uid="study-2"), (0, "COMPLETE", other))
    assert second.experiment_id == projection.experiment_id
    assert len(store.runs()) == 4


RETRAINED = "Trial 3 of the study **wide**, trained again. "
TRAINED = "A configuration, trained by `regtune train`."


@pytest.mark.parametrize(
    ("origin", "study_run", "run", "said"),
    [
        (RetrainedFrom("wide", 3), "retraining of ", "again #003 ", RETRAINED),
        (RetrainedFrom(), "training of ", "trained ", TRAINED),
    ],
)
def test_a_retraining_is_no_trial_of_the_study(
    store: Store, origin: RetrainedFrom, study_run: str, run: str, said: str
) -> None:
    projection = store.project(replace(records.facts(), retrained=origin), records.complete(0))
    parent, child = sorted(store.runs(), key=lambda found: names.PARENT in found.data.tags)
    assert str(parent.info.run_name).startswith(study_run)
    assert child.info.run_name == f"{run}dropout 0.2 + L2 1e-4"
    for found in (parent, child):
        assert said in found.data.tags[names.NOTE]
        assert "regtune board" not in found.data.tags[names.NOTE]
        assert found.data.tags[names.SOURCE_NAME] == "regtune train (mnist-regularization)"
    shown = store.client.get_experiment(projection.experiment_id).tags[names.NOTE]
    assert "Each *training* is one configuration" in shown


def test_a_retraining_belongs_to_its_study_with_its_params_and_outside_the_view(store: Store) -> None:
    projection = store.project(records.facts(), records.complete(0), records.complete(1))
    projection.study("FINISHED", 1, records.BEGIN_MS + 900_000)
    origin = RetrainedFrom("mnist-regularization", 0, "study-1")
    facts = replace(records.facts(uid="train-1"), name="mnist-regularization, again", retrained=origin)
    again = replace(records.complete(0)[2], uid="train-1-0", parameters={})
    store.project(facts, (0, "COMPLETE", again)).study("FINISHED", 0)
    first, second, *trials = store.runs()
    parent, found = (first, second) if first.data.tags[names.KIND] == names.STUDY else (second, first)
    assert found.info.run_name == "again #000 dropout 0.2 + L2 1e-4"
    assert found.data.tags[names.PARENT] == parent.info.run_id
    assert found.data.tags[names.STUDY_TAG] == "study-1"  # deleted with it
    assert found.data.params == {**trials[0].data.params, "seed": found.data.params["seed"]}
    assert parent.data.tags[names.BEST_NUMBER] == "1"
    view = store.client.get_experiment(projection.experiment_id).tags[f"mlflow.sharedViewState.{KEY}"]
    state = json.loads(json.loads(view)["state"])
    order = f"{state['orderByKey']} {'ASC' if state['orderByAsc'] else 'DESC'}"
    shown = store.client.search_runs([projection.experiment_id], state["searchFilter"], order_by=[order])
    assert [run.info.run_name for run in shown] == [run.info.run_name for run in trials]
    repeated = store.project(records.facts(), records.complete(0), records.complete(1))
    repeated.study("FINISHED", 1, records.BEGIN_MS + 900_000)
    assert repeated.writes == 0


def test_a_run_that_a_person_deleted_stays_deleted(store: Store) -> None:
    store.project(records.facts(), records.complete(0), records.complete(1))
    store.client.delete_run(store.run(0).info.run_id)
    assert store.project(records.facts(), records.complete(0)).writes == 0
    assert [run.data.tags.get(names.NUMBER) for run in store.runs()] == [None, "1"]


def test_a_run_that_a_person_deletes_while_it_trains_is_refused_once(store: Store) -> None:
    projection = store.project(records.facts(), (0, "RUNNING", records.after(records.started(0), 1)))
    store.client.delete_run(store.run(0).info.run_id)
    projection.trial(0, "RUNNING", records.after(records.started(0), 2))
    projection.trial(*records.complete(0))
    assert not projection.refusals


def test_long_histories_and_many_params_go_in_batches(store: Store) -> None:
    record = replace(records.started(0), parameters={f"p{index}": float(index) for index in range(150)})
    record = records.after(record, 190)
    store.project(records.facts(), (0, "RUNNING", record))
    run = store.run(0)
    assert len(store.points(run, "loss")) == 190
    assert {f"p{index}" for index in range(150)} < set(run.data.params)


def test_a_name_that_is_stored_is_never_another() -> None:
    """Studies and runs of every earlier version have these."""
    words = [ORIGIN, RECORD, STUDY_UID, SPEC, BUDGET, CREATED, DATA, ENDED]
    expected = ("origin", "record", "uid", "spec", "budget", "created_ms", "data", "ended")
    assert words == [f"regtune.{word}" for word in expected]
    tags = [names.KIND, names.SWEEP, names.TRIAL_UID, names.STATE, names.DATA]
    assert tags == [f"regtune.{word}" for word in ("kind", "sweep", "trial_uid", "state", "data")]
