"""The promotion of a study's choice: trained afresh, held against the gates, registered, and then made champion.

The order is what matters. Whatever can refuse comes before what cannot be undone: the test set is opened once, after
every gate that does without it; a version is registered whole, and read back; its alias moves last, and only from where
it was when the gates were asked.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from regtune.data.datasets import Arrays, load_arrays, split_of
from regtune.errors import AliasMoved, DataError, ModelNotFound, StudyBusy, TrackingError, VersionDamaged
from regtune.escaping import printable, shell_word
from regtune.evidence.conclusion import techniques
from regtune.registry import journal
from regtune.registry.card import card_of, description_of
from regtune.registry.challenger import Challenger, challenge, classes_of
from regtune.registry.choice import Choice
from regtune.registry.contents import check_folder, read_predictions, write_folder
from regtune.registry.gates import (
    Gates,
    Tested,
    open_gates,
    refusals,
    wilson,
)
from regtune.registry.lineage import tags_of
from regtune.registry.openings import PATIENCE_SECONDS, open_test_set
from regtune.registry.promotion_run import PromotionRun, begin
from regtune.registry.store import Registry, Version, check_alias, check_name, open_registry
from regtune.registry.training import OnEpoch
from regtune.registry.version import DataUsed, Gate, Opening, Record
from regtune.settings import Settings
from regtune.storage import understood, writable_folder
from regtune.study.best import fingerprint
from regtune.study.study import versions
from regtune.tracking import names
from regtune.tracking.studies import StudyFacts, StudyTrials
from regtune.tracking.sync import sync

OnNote = Callable[[str], object]


@dataclass(frozen=True)
class Promotion:
    """What came of a promotion.

    version: of the registered model; None where a gate refused, or nothing was to be written. refused: names of the
    gates that refused. forced: the reason for which they were passed over.
    """

    name: str
    alias: str
    gates: tuple[Gate, ...]
    refused: tuple[str, ...]
    version: int | None = None
    record: Record | None = None
    forced: str | None = None

    def to_json(self) -> dict[str, Any]:
        shown = {key: getattr(self, key) for key in ("name", "alias", "version", "refused", "forced")}
        record = self.record and self.record.model_dump(mode="json", exclude={"decision", "gates"})
        return shown | {"gates": [gate.model_dump() for gate in self.gates], "record": record}


def promote(
    choice: Choice,
    engine: Engine,
    *,
    settings: Settings,
    name: str | None = None,
    alias: str = names.CHAMPION,
    limits: Gates | None = None,
    refit: bool = False,
    dry_run: bool = False,
    force: str | None = None,
    on_note: OnNote = lambda message: None,
    on_epoch: OnEpoch = lambda which, epoch, figures: None,
) -> Promotion:
    """Train what was chosen, ask the gates, register it, and point `alias` at it.

    Args:
        choice: Of `choose`.
        engine: The studies' database.
        settings: Where everything is.
        name: Of the registered model; the sweep's by default.
        alias: That moves to the version.
        limits: Of the gates; their defaults where None.
        refit: Register what is trained on the training and the validation images together.
        dry_run: Train and show the gates that need no test set; nothing is written anywhere.
        force: Why gates that refuse are passed over.
        on_note: Told what a person should know, and how far it is.
        on_epoch: Told each epoch of a training.

    Raises:
        DataError: The data is not the recorded one, or has no test part.
        StudyBusy: The study is being run.
        AliasMoved: Somebody else moved the alias meanwhile; the version stays, without it.
        InputError, RegistryError, TrackingError, StorageError, WorkerError: As their names say.
    """
    name = choice.sweep if name is None else name
    check_name(name)
    check_alias(alias)
    arrays = load_arrays(choice.config.data.name, settings.data_dir)
    _check_data(choice, arrays)
    registry = open_registry(settings)
    given = _Given(choice, registry, arrays, limits or Gates(), name, alias, refit, on_note, on_epoch)
    if dry_run:
        state = _state(registry, name)
        with _folder() as folder:
            return given.dry(folder, state)
    writable_folder(settings.home.resolve())
    facts = _tracked(settings, engine, choice.source.study)
    state = _settled(registry, name)
    if state is not None:
        registry.require_edit(name, state.journal)
    run = begin(registry, facts, choice, name)
    with _ended(run), _folder() as folder:
        return given.promote(folder, state, run, force)


def _check_data(choice: Choice, arrays: Arrays) -> None:
    config = choice.config.data
    if config.digest is not None and config.digest != arrays.digest:
        raise DataError(
            f"{printable(config.name)}: the data at {printable(arrays.source)} has digest {arrays.digest[:12]}..., "
            f"the study was run on {config.digest[:12]}...; expected the same data"
        )
    if not len(arrays.x_test):
        raise DataError(f"{printable(config.name)}: it has no test images, without which nothing is promoted")


def _tracked(settings: Settings, engine: Engine, study: str) -> StudyFacts:
    """The facts of a study that MLflow knows all of, which is seen to; another that sees to it, too, is waited for.

    Raises StudyBusy, TrackingError.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        (synced,) = sync(settings, [study], tell=lambda name, done, count: None)
        if synced.problem:
            raise TrackingError(synced.problem)
        if not synced.running:
            break
        if time.monotonic() > deadline:
            said = f'study "{printable(study)}" is being run by {synced.running}'
            raise StudyBusy(f"{said}; look at it with: regtune watch {shell_word(study)}")
        time.sleep(0.1)
    return StudyTrials(engine, study, at_rest=True).facts


def _state(registry: Registry, name: str) -> journal.State | None:
    try:
        return journal.read(registry, name)
    except ModelNotFound:
        return None


def _settled(registry: Registry, name: str) -> journal.State | None:
    return None if _state(registry, name) is None else journal.settle(registry, name)


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder that is gone afterwards. Raises StorageError where there is no room in it."""
    with tempfile.TemporaryDirectory(prefix="regtune-") as folder, understood(folder):
        yield Path(folder)


@contextmanager
def _ended(run: PromotionRun) -> Iterator[None]:
    """See that the run says how it ended, whatever ends it."""
    try:
        yield
    except BaseException as error:
        with suppress(TrackingError):  # the store is away; the next promotion sees to it
            run.end("FAILED" if isinstance(error, Exception) else "KILLED")
        raise


@dataclass(frozen=True)
class _Given:
    """What a promotion was asked for."""

    choice: Choice
    registry: Registry
    arrays: Arrays
    limits: Gates
    name: str
    alias: str
    refit: bool
    note: OnNote
    epoch: OnEpoch

    def dry(self, folder: Path, state: journal.State | None) -> Promotion:
        champion, broken = self._champion(folder, state)
        trained = self._trained(folder)
        return self._refused((*trained.gates, *(broken or self._opened(None, champion))))

    def promote(
        self, folder: Path, state: journal.State | None, run: PromotionRun, force: str | None
    ) -> Promotion:
        champion, broken = self._champion(folder, state)
        if broken and force is None:
            return self._end_refused(run, broken)
        trained = self._trained(folder)
        run.trained(trained.training.record)
        if refusals(trained.gates) and force is None:
            return self._end_refused(run, (*trained.gates, *(broken or self._opened(None, champion))))
        from regtune.registry.deployed import predict_pixels

        openings = open_test_set(self.registry.settings, self._opening())
        self.note(f"opening the test set: the {_ordinal(len(openings))} time for this study")
        probabilities = predict_pixels(trained.network, self.arrays.x_test)
        simple = techniques(self.choice.config), trained.entries
        new = Tested("this one", self.arrays.digest, *simple, probabilities)
        gates = (*trained.gates, *(broken or self._opened(new, champion)))
        refused = refusals(gates)
        if refused and force is None:
            return self._end_refused(run, gates)
        forced = force if refused else None
        record = self._record(trained, new, gates, forced, openings, champion)
        run.gated(gates)
        version = self._register(folder, trained.network, record, probabilities, run)
        run.tested(record, version.model_id)
        self._move(version, state, forced)
        run.end("FINISHED")
        return replace(self._refused(gates), version=version.number, record=record, forced=forced)

    def _opened(self, new: Tested | None, champion: Tested | None) -> tuple[Gate, ...]:
        return open_gates(self.limits, new, self.arrays.y_test, champion)

    def _end_refused(self, run: PromotionRun, gates: tuple[Gate, ...]) -> Promotion:
        run.gated(gates)
        run.end("FAILED")
        return self._refused(gates)

    def _refused(self, gates: tuple[Gate, ...]) -> Promotion:
        return Promotion(self.name, self.alias, gates, tuple(gate.name for gate in refusals(gates)))

    def _champion(self, folder: Path, state: journal.State | None) -> tuple[Tested | None, tuple[Gate, ...]]:
        """The champion's predictions; of one whose files are not right, or gone, a gate that refuses."""
        if state is None or state.champion is None:
            return None, ()
        found = self.registry.find(f"{self.name}@v{state.champion}")
        label = f"version {found.number}"
        try:
            files = self.registry.download(found, folder / "champion")
            record = check_folder(files, found.tags.get(names.MANIFEST_DIGEST, ""))
            predictions = read_predictions(files, record)
        except (VersionDamaged, TrackingError) as error:
            gone = getattr(error.__cause__, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"
            if isinstance(error, TrackingError) and not gone:  # the store is away, or there is no room
                raise
            said = f"{label} is not as it was registered: {str(error).splitlines()[0]}"
            gate = Gate(name="champion", figure="–", limit="every digest right", passed=False, note=said)
            return None, (gate,)
        return Tested(label, record.data.digest, record.techniques, record.entries, predictions), ()

    def _trained(self, folder: Path) -> Challenger:
        self.note("training twice, side by side: both have to reach the same figures")
        data_dir = self.registry.settings.data_dir
        return challenge(self.choice, self.arrays, self.limits, folder, data_dir, self.refit, self.epoch)

    def _opening(self) -> Opening:
        return Opening(
            data=self.arrays.digest,
            at=_now(),
            study=self.choice.source.study,
            model=self.name,
            config=fingerprint(self.choice.config),
        )

    def _record(
        self,
        trained: Challenger,
        new: Tested,
        gates: tuple[Gate, ...],
        forced: str | None,
        openings: tuple[Opening, ...],
        champion: Tested | None,
    ) -> Record:
        from regtune.registry.deployed import figures_of, predict_pixels

        choice, arrays = self.choice, self.arrays
        split = split_of(arrays, choice.config.data)
        images, labels = arrays.x_train[split.validation], arrays.y_train[split.validation]
        test = figures_of(new.probabilities, arrays.y_test)
        low, high = wilson(int((new.probabilities.argmax(axis=1) == arrays.y_test).sum()), test.images)
        return Record(
            name=self.name,
            source=choice.source,
            config=choice.config,
            fingerprint=fingerprint(choice.config),
            data=DataUsed(
                name=arrays.name,
                digest=arrays.digest,
                split_seed=choice.config.data.split_seed,
                train=len(split.train),
                validation=len(split.validation),
                test=len(arrays.x_test),
                features=arrays.x_train.shape[1],
                classes=classes_of(arrays),
            ),
            refit=self.refit,
            epochs=trained.training.record.epochs,
            kept_epoch=trained.kept.epoch,
            techniques=new.techniques,
            entries=new.entries,
            validation=figures_of(predict_pixels(trained.network, images), labels),
            test=test,
            accuracy_low=low,
            accuracy_high=high,
            champion=champion.name if champion else None,
            gates=gates,
            forced=forced,
            openings=openings,
            decision=choice.decision.model_dump(mode="json") if choice.decision else None,
            bytes=trained.bytes,
            seconds_a_digit=trained.seconds_a_digit,
            versions=versions(),
            created=_now(),
        )

    def _register(
        self, folder: Path, network: Any, record: Record, predictions: Any, run: PromotionRun
    ) -> Version:
        """Register the version, and read it back: what lies in the store is what was made."""
        self.registry.create(self.name, run.experiment_id)
        files = folder / "version"
        card = card_of(record)
        digest = write_folder(files, network, record, self.choice.best.to_yaml(), predictions, card)
        description = description_of(record)
        version = self.registry.register(
            self.name,
            files,
            experiment_id=run.experiment_id,
            run_id=run.run_id,
            tags=tags_of(record, digest, description),
            description=description,
        )
        self.note(f"registered as version {version.number}")
        check_folder(self.registry.download(version, folder / "registered"), digest)
        return version

    def _move(self, version: Version, state: journal.State | None, forced: str | None) -> None:
        expected = state or journal.State(self.name, "")
        why = f"promoted from {self.choice.source.study}"
        try:
            journal.move(
                self.registry, self.name, self.alias, version.number, expected, why=why, forced=forced
            )
        except AliasMoved as error:
            raise AliasMoved(f"{error}; version {version.number} is registered, without an alias") from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _ordinal(count: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(count, f"{count}th")
