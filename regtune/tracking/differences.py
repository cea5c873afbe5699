"""The difference between what a run should contain and what MLflow has, computed without MLflow."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from regtune.storage.artifacts import inside
from regtune.tracking import names
from regtune.tracking.contents import Contents, Point, experiment_tags
from regtune.tracking.facts import StudyFacts
from regtune.tracking.notes import experiment_note
from regtune.tracking.runs import Experiment, Reader, Run


@dataclass(frozen=True)
class Lack:
    """What a run lacks. points: with their metric's name, oldest first. config: whether its configuration is missing.

    artifacts: files to be brought, with their SHA-256. surplus: files to be removed. ended_ms: Unix milliseconds.
    """

    points: Sequence[tuple[str, Point]] = ()
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    inputs: bool = False
    config: bool = False
    artifacts: Mapping[Path, str] = field(default_factory=dict)
    surplus: Sequence[str] = ()
    status: str | None = None
    ended_ms: int | None = None

    def __bool__(self) -> bool:
        return bool(self.kinds)

    @property
    def kinds(self) -> list[str]:
        """What is missing, in words."""
        found = {
            "points": self.points,
            "params": self.params,
            "tags": self.tags,
            "data sets": self.inputs,
            names.CONFIG: self.config,
            "files": self.artifacts or self.surplus,
            "state": self.status,
        }
        return [kind for kind, lack in found.items() if lack]


def lacking(run: Run, wanted: Contents, reader: Reader, folder: Path) -> Lack:
    """What `run` lacks of `wanted`. folder: regtune's artifact folder.

    A file of another digest is not brought. A file that is not here cannot be brought and is not missed: the
    trial's folder may lie on another machine. Nor is any of a run that keeps its files outside the project.
    """
    files = {name: sha256 for name, sha256 in run.tags.items() if name.startswith(names.ARTIFACT)}
    tagged = {name.removeprefix(names.ARTIFACT): sha256 for name, sha256 in files.items()}
    reached = inside(run.artifact_uri, folder)
    present = {name: sha256 for name, sha256 in tagged.items() if not _lost(run, name, folder)}
    artifacts = wanted.artifacts
    brought, surplus = {}, []
    wanted_tags = dict(wanted.tags)
    if artifacts is not None and reached:
        for name, sha256 in artifacts.items():
            file = folder / "trials" / wanted.tags[names.TRIAL_UID] / name
            if present.get(name) == sha256 or not file.is_file():
                continue
            found = hashlib.sha256(file.read_bytes()).hexdigest()
            if found == sha256:
                brought[file] = sha256
            else:
                said = f"{name} has digest {found}, its record says {sha256}: not shown here"
                wanted_tags[names.MESSAGE] = said
        surplus = [name for name in tagged if name != wanted.config_name and name not in artifacts]
    tags = _differing(wanted_tags, run.tags) | note(run.tags, wanted.note)
    done = run.status == wanted.status and wanted.ended_ms in (None, run.end_ms)
    stale = wanted.config_name not in present or names.CONFIG_DIGEST in tags
    return Lack(
        points=_points(run, wanted.points, reader),
        params={name: value for name, value in wanted.params.items() if name not in run.params},
        tags=tags,
        inputs=not run.inputs,
        config=reached and wanted.config is not None and stale,
        artifacts=brought,
        surplus=surplus,
        status=None if done else wanted.status,
        ended_ms=None if done else wanted.ended_ms,
    )


def _lost(run: Run, name: str, folder: Path) -> bool:
    """Whether a file that MLflow is said to have in this folder is not there; elsewhere its server sees to it."""
    own = f"{(folder / 'runs').as_uri()}/"
    if not run.artifact_uri.startswith(own):
        return False
    return not (folder / "runs" / unquote(run.artifact_uri.removeprefix(own)) / name).exists()


def experiment_lacks(facts: StudyFacts, found: Experiment) -> dict[str, str]:
    """The tags that an experiment lacks.

    They are those of the study that has the sweep's name; others that share the experiment, set aside or trained
    again, leave them alone.
    """
    if facts.name != facts.sweep:
        return {}
    return _differing(experiment_tags(facts), found.tags) | note(found.tags, experiment_note(facts))


def _differing(wanted: Mapping[str, str], found: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in wanted.items() if found.get(name) != value}


def note(tags: Mapping[str, str], text: str) -> dict[str, str]:
    """The tags of a description, unless it is there, or a person has written another since."""
    current = tags.get(names.NOTE, "")
    if current == text or (current and digest(current) != tags.get(names.NOTE_DIGEST)):
        return {}
    return {names.NOTE: text, names.NOTE_DIGEST: digest(text)}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _points(run: Run, wanted: Mapping[str, Sequence[Point]], reader: Reader) -> list[tuple[str, Point]]:
    """The points that MLflow lacks, oldest first.

    A metric's points are written in order, so its newest tells how many there are; the whole history is
    read only when the newest is none of those wanted.
    """
    missing: list[tuple[str, Point]] = []
    for name, points in wanted.items():
        last = run.last.get(name)
        if last is None:
            missing += [(name, point) for point in points]
            continue
        known = [(point.step, point.value) for point in points]
        if last in known:
            after = len(known) - known[::-1].index(last)
            missing += [(name, point) for point in points[after:]]
        else:
            there = reader.history(run.run_id, name)
            missing += [(name, point) for point in points if (point.step, point.value) not in there]
    return sorted(missing, key=lambda entry: entry[1].step)
