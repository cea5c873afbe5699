"""Executors: what each promises, on real worker processes."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from parts import file_system, ray_cluster

from regtune.config.trial import DataConfig, EarlyStoppingConfig, ModelConfig, TrainingConfig, TrialConfig
from regtune.data.datasets import load_arrays, load_data
from regtune.errors import WorkerError
from regtune.executors import (
    EpochEnded,
    Event,
    Sample,
    Task,
    TrialEnded,
    TrialFailed,
    TrialStarted,
    WorkerReady,
    local,
)
from regtune.executors.local import LocalExecutor
from regtune.executors.ray import RayExecutor
from regtune.executors.ray_driver import RayCluster
from regtune.executors.worker import failure
from regtune.forks import SAFE
from regtune.training.result import Verdict

SMALL = TrialConfig(
    model=ModelConfig(hidden=(16,)),
    training=TrainingConfig(max_epochs=3, batch_size=64),
    early_stopping=EarlyStoppingConfig(),
    data=DataConfig(name="mnist-5k"),
    seed=7,
)


AnyExecutor = LocalExecutor | RayExecutor
Start = Callable[[], AnyExecutor]


def task(folder: Path, uid: str = "a", **changes: object) -> Task:
    return Task(uid, SMALL, "val_cross_entropy", folder / uid, **changes)  # type: ignore[arg-type]


def collect(executor: AnyExecutor, until: type[Event], verdict: Verdict = "continue") -> list[Event]:
    """Events until one of the type `until`, with every epoch answered."""
    told: list[Event] = []
    deadline = time.monotonic() + 400
    while not any(isinstance(event, until) for event in told):
        assert time.monotonic() < deadline, f"no {until.__name__}, only {told}"
        for event in executor.events(0.2):
            told.append(event)
            if isinstance(event, EpochEnded):
                executor.decide(event.uid, verdict)
    return told


def last(executor: AnyExecutor, kind: type[Event], verdict: Verdict = "continue") -> Any:
    """The first event of that type, with every epoch answered until then."""
    return collect(executor, kind, verdict)[-1]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster of two nodes with one processor each."""
    with ray_cluster() as cluster:
        cluster.add_node(1)
        cluster.add_node(1)
        yield cluster.address


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.slow)])
def start(request: pytest.FixtureRequest) -> Start:
    """Starts an executor with one worker."""
    if request.param == "local":
        return lambda: LocalExecutor(1)
    address = request.getfixturevalue("cluster")
    return lambda: RayExecutor(RayCluster(address), load_arrays(SMALL.data.name), 1)


@pytest.fixture(scope="module")
def executor(start: Start) -> Iterator[AnyExecutor]:
    with closing(start()) as executor:
        yield executor


def test_a_task_is_told_epoch_by_epoch_and_one_too_many_is_refused(
    executor: AnyExecutor, tmp_path: Path
) -> None:
    executor.submit(task(tmp_path))
    assert executor.idle == 0
    with pytest.raises(WorkerError, match="no worker is idle"):
        executor.submit(task(tmp_path, "b"))
    events = collect(executor, TrialEnded)
    told = [type(event) for event in events if not isinstance(event, WorkerReady)]
    assert told == [TrialStarted, EpochEnded, EpochEnded, EpochEnded, TrialEnded]
    assert (tmp_path / "a" / "model.keras").exists()
    assert executor.idle == 1
    maps = Path(f"/proc/{executor.pids[0]}/maps")
    if maps.exists():  # what Keras imports for others is not loaded
        assert "/tensorflow/" in maps.read_text()
        assert not any(f"/{package}/" in maps.read_text() for package in ("matplotlib", "pandas", "sklearn"))


@pytest.mark.skipif(not SAFE, reason="this system's libraries do not survive a fork")
def test_workers_share_what_they_import_of_which_nothing_runs_before_they_are_forked(
    executor: AnyExecutor, tmp_path: Path
) -> None:
    executor.submit(task(tmp_path))
    last(executor, TrialEnded)
    worker = psutil.Process(executor.pids[0])
    server = worker.parent()
    assert server is not None
    assert server.num_threads() == 2  # its own thread and the lifeline's
    memory = worker.memory_full_info()
    assert memory.uss < memory.rss / 2


def test_a_verdict_ends_a_trial_after_its_epoch_and_only_models_among_the_best_are_kept(
    executor: AnyExecutor, tmp_path: Path
) -> None:
    executor.submit(task(tmp_path, threshold=1e-9))
    ended = last(executor, TrialEnded)
    assert not ended.artifacts
    executor.submit(task(tmp_path, "equal", threshold=ended.result.figures["val_cross_entropy"]))
    assert last(executor, TrialEnded).artifacts
    executor.submit(task(tmp_path))
    ended = last(executor, TrialEnded, verdict="prune")
    assert (ended.result.end, len(ended.result.epoch_seconds)) == ("pruned", 1)
    assert not (tmp_path / "a").exists()


def test_a_task_brings_what_its_kept_weights_answer_and_measures_them(
    executor: AnyExecutor, tmp_path: Path
) -> None:
    executor.submit(task(tmp_path))
    plain = last(executor, TrialEnded)
    assert (plain.predictions, plain.result.extra) == (None, {})
    executor.submit(task(tmp_path, tolerance=0.01, predictions=True))
    ended = last(executor, TrialEnded)
    assert ended.result.history == plain.result.history
    labels = load_data(SMALL.data).y_val
    right = ended.predictions.argmax(axis=1) == labels
    assert right.mean() == pytest.approx(ended.result.figures["val_accuracy"])
    squares = np.square(ended.predictions - np.eye(10)[labels]).sum(axis=1)
    assert ended.result.extra["brier"] == pytest.approx(squares.mean())
    assert set(ended.result.extra) == {"ece", "brier", "prunable"}


def test_a_sample_is_the_first_images_of_the_split_or_as_many_drawn_with_replacement(
    executor: AnyExecutor, tmp_path: Path
) -> None:
    data = load_data(SMALL.data)
    first = Sample(images=100).draw(data)
    np.testing.assert_array_equal(first.x_train, data.x_train[:100])
    np.testing.assert_array_equal(first.y_train, data.y_train[:100])
    assert first.x_val is data.x_val
    rows = np.random.default_rng(5).integers(100, size=100)
    np.testing.assert_array_equal(Sample(100, bootstrap=5).draw(data).x_train, data.x_train[rows])
    assert Sample(bootstrap=6).draw(data).x_train.shape == data.x_train.shape
    with pytest.raises(ValueError, match="3,201 images was asked for; the split has 3,200"):
        Sample(3201).draw(data)

    histories = []
    for sample in (None, Sample(3200), Sample(bootstrap=1), Sample(bootstrap=2), Sample(640), None):
        executor.submit(task(tmp_path, sample=sample))
        histories.append(last(executor, TrialEnded).result.history)
    assert histories[0] == histories[1] == histories[5]
    assert len({history["loss"] for history in histories}) == 4


def test_an_error_and_what_a_terminal_sends_end_no_worker(executor: AnyExecutor, tmp_path: Path) -> None:
    pid = executor.pids[0]
    wrong = SMALL.model_copy(update={"data": DataConfig(name="nowhere.npz", digest="0" * 64)})
    executor.submit(Task("wrong", wrong, "val_cross_entropy", tmp_path))
    failed = last(executor, TrialFailed)
    assert failed.reason == "error"
    assert "nowhere.npz: " in failed.message
    executor.submit(task(tmp_path))
    collect(executor, TrialStarted)
    for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, sent)
    last(executor, TrialEnded)
    assert executor.pids[0] == pid


def test_a_killed_worker_is_replaced_and_a_limit_ends_the_trial(
    executor: AnyExecutor, tmp_path: Path
) -> None:
    executor.submit(task(tmp_path))
    collect(executor, TrialStarted)
    pid = executor.pids[0]
    os.kill(pid, signal.SIGKILL)
    failed = last(executor, TrialFailed)
    assert (failed.reason, "SIGKILL" in failed.message) == ("worker_died", True)
    executor.submit(task(tmp_path, "again"))
    last(executor, TrialEnded)
    assert executor.pids[0] != pid
    executor.submit(task(tmp_path, timeout_seconds=0.0))
    assert last(executor, TrialFailed).message == "longer than trial_timeout, 0 s"
    long = SMALL.model_copy(update={"training": TrainingConfig(max_epochs=10_000), "early_stopping": None})
    executor.submit(Task("a", long, "val_cross_entropy", tmp_path, memory_bytes=2**20))
    failed = last(executor, TrialFailed)
    assert failed.reason == "out_of_memory"
    assert "more than trial_memory_mb, 1" in failed.message


class Clock:
    """Time for an executor, which may have been away; it may be asked what to wait for."""

    def __init__(self) -> None:
        self.away = 0.0
        self.until: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        self.until()
        return time.monotonic() + self.away


def test_what_a_trial_waits_for_its_verdicts_counts_to_no_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As long as a database is away, which keeps the coordinator: with the epoch untold, and then unanswered."""
    clock, told = Clock(), list[Event]()

    def wait_long(connections: Any, seconds: float) -> Any:
        found = wait(connections, 400)
        clock.away += 1000.0
        return found

    monkeypatch.setattr(local, "time", clock)
    monkeypatch.setattr(local, "wait", wait_long)
    with closing(LocalExecutor(1)) as executor:
        executor.submit(task(tmp_path, timeout_seconds=300.0))
        while not any(isinstance(event, TrialEnded | TrialFailed) for event in told):
            new = executor.events(0.0)
            clock.away += 1000.0
            for event in new:
                if isinstance(event, EpochEnded):
                    executor.decide(event.uid, "continue")
            told += new
        assert [type(event) for event in told].count(EpochEnded) == 3
        assert isinstance(told[-1], TrialEnded)
        monkeypatch.setattr(local, "wait", wait)
        executor.submit(task(tmp_path, timeout_seconds=300.0))
        collect(executor, TrialStarted)
        os.kill(executor.pids[0], signal.SIGSTOP)
        for event in executor.events(1.0):  # what it had told before it hung
            if isinstance(event, EpochEnded):
                executor.decide(event.uid, "continue")
        clock.away += 1000.0
        assert last(executor, TrialFailed).reason == "timeout"


def test_a_limit_that_comes_with_the_end_of_a_trial_leaves_a_worker_for_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, heard = Clock(), list[Any]()

    def listen(connections: Any, seconds: float) -> Any:
        heard[:] = connections
        return wait(connections, seconds)

    def end() -> None:
        """The trial ends, after what it has told was read and before its limits are looked at."""
        clock.until = lambda: None
        wait(heard, 400)
        clock.away += 1000.0

    monkeypatch.setattr(local, "time", clock)
    monkeypatch.setattr(local, "wait", listen)
    with closing(LocalExecutor(1)) as executor:
        for number in range(3):
            executor.submit(task(tmp_path, str(number), timeout_seconds=300.0))
            for epoch in (1, 2, 3):
                (*_, ended) = (one for one in collect_epoch(executor) if isinstance(one, EpochEnded))
                assert ended.epoch == epoch
                executor.decide(ended.uid, "continue")
            clock.until = end
            assert executor.events(0.0) == []
            assert isinstance(executor.events(10.0)[-1], TrialEnded)
            assert executor.idle == 1


def collect_epoch(executor: AnyExecutor) -> list[Event]:
    """Events until an epoch has ended, which is not answered."""
    told: list[Event] = []
    while not any(isinstance(event, EpochEnded) for event in told):
        told += executor.events(0.2)
    return told


def test_a_disk_that_is_full_fails_the_trial_and_is_named(executor: AnyExecutor, tmp_path: Path) -> None:
    with file_system(tmp_path, "size=64k"):
        executor.submit(task(tmp_path))
        failed = last(executor, TrialFailed)
        assert (failed.reason, failed.message) == ("disk_full", str(tmp_path / "a"))
        assert not list((tmp_path / "a").iterdir())
    executor.submit(task(tmp_path))
    last(executor, TrialEnded)


def test_a_lack_is_the_reason_also_where_cleaning_up_after_it_fails_in_turn(tmp_path: Path) -> None:
    """As Keras does when a model is saved: its files are closed a second time."""
    lacks: list[tuple[Exception, str, str]] = [
        (MemoryError(), "out_of_memory", "MemoryError: an object could not be allocated"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full", str(tmp_path / "a")),
        (KeyError("a"), "error", "ValueError: I/O operation on closed file"),
    ]
    for lack, reason, message in lacks:
        hidden = ValueError("I/O operation on closed file")
        hidden.__context__ = lack
        failed = failure(task(tmp_path), 0, hidden)
        assert (failed.reason, failed.message) == (reason, message)


def test_what_a_user_has_for_other_programs_does_not_reach_a_worker(
    executor: AnyExecutor, start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Settings of Keras and TensorFlow, and files beside a script, which is the first folder that Python looks in."""
    executor.submit(task(tmp_path))
    before = last(executor, TrialEnded)
    scripts, keras_home = tmp_path / "scripts", tmp_path / "keras"
    for folder in (scripts, keras_home, scripts / "regtune"):
        folder.mkdir()
    for file in ("numpy.py", "keras.py", "tensorflow.py", "typing.py", "regtune/__init__.py"):
        (scripts / file).write_text("raise SystemExit('imported from a folder of the user')")
    (keras_home / "keras.json").write_text('{"floatx": "float64", "backend": "torch"}')
    for name, value in {
        "KERAS_HOME": str(keras_home),
        "KERAS_MAX_EPOCHS": "1",
        "KERAS_MAX_STEPS_PER_EPOCH": "many",
        "KERAS_BACKEND": "torch",
        "TF_XLA_FLAGS": "--tf_xla_auto_jit=2",
        "XLA_FLAGS": "--no_such_flag",
        "PYTHONPATH": str(scripts),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(scripts)
    monkeypatch.chdir(scripts)
    with closing(start()) as other:
        other.submit(task(tmp_path, "other"))
        after = last(other, TrialEnded)
    assert after.result.history == before.result.history


@pytest.mark.parametrize(
    ("end", "how"), [("sys.exit(7)", "exit code 7"), ("os.abort()", "signal SIGABRT")], ids=["exit", "abort"]
)
def test_a_worker_s_last_words_are_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str, how: str
) -> None:
    """It hangs up before it ends, as a process does whose interpreter still clears up."""
    dying = tmp_path / "python"
    dying.write_text(
        f"#!{sys.executable} -S\nimport os, sys, time\nos.closerange(3, 256)\ntime.sleep(0.2)\n"
        f"print('libgomp.so.1: no such file', file=sys.stderr, flush=True)\n{end}\n"
    )
    dying.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(dying))
    said = f"die before they are ready: worker 0 ended with {how}: libgomp.so.1: no such file"
    with closing(LocalExecutor(1)) as executor:
        executor.submit(task(tmp_path))
        with pytest.raises(WorkerError, match=said):
            collect(executor, WorkerReady)  # at the second that dies before it is ready
