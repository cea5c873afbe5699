"""MLflow's model registry: registered models, their versions, and the files of a version."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regtune.config.sweepfile.specification import NAME
from regtune.errors import InputError, ModelNotFound, RegistryError, TrackingError
from regtune.escaping import markdown, printable
from regtune.registry import journal
from regtune.settings import Settings
from regtune.storage.mlflow import is_server, store_url, tracking_schema
from regtune.storage.schema import TRACKING
from regtune.tracking import names
from regtune.tracking.store import open_client, target_of, understood

if TYPE_CHECKING:
    from regtune.registry.cache import Found

MOST_DIGITS = 9
"""Of a version's number: databases keep it in 32 bits."""
_ALIAS = re.compile(r"[\w-]{1,255}", re.ASCII)
_NUMBER = re.compile(r"[vV](\d+)", re.ASCII)
_JOURNAL = (
    "Every move of an alias of the registered model **{}**: who, when and why. Keep this run: without it regtune moves "
    "none of them any more."
)
_SECTION = "\n\n## "


@dataclass(frozen=True)
class Model:
    """A registered model. aliases: as MLflow has them.

    journal: the run of its moves; empty for another program's, and for one that was given a name that regtune refuses.
    """

    name: str
    journal: str
    aliases: Mapping[str, int]


@dataclass(frozen=True)
class Version:
    """A version of a registered model. source: where MLflow has its files. description: the card, in Markdown."""

    name: str
    number: int
    aliases: tuple[str, ...]
    run_id: str | None
    model_id: str | None
    source: str
    tags: Mapping[str, str]
    description: str
    created: datetime


def parse_target(target: str) -> tuple[str, str]:
    """Split ``NAME[@alias]``; the alias is `champion` where none is given. Raises InputError."""
    name, at, alias = target.rpartition("@")
    if not at:
        name, alias = target, names.CHAMPION
    if not name or not alias:
        raise InputError(f"{printable(target)}: expected NAME or NAME@alias")
    return name, alias


def check_alias(alias: str) -> None:
    """Raises InputError for an alias that a promotion cannot move."""
    if alias.lower() == "latest" or _NUMBER.fullmatch(alias):
        raise InputError(f"--alias {alias}: reserved by MLflow; choose another")
    if alias == names.PREVIOUS:
        raise InputError(f"--alias {alias}: regtune moves it with @{names.CHAMPION}; choose another")
    if not _ALIAS.fullmatch(alias):
        raise InputError(f"--alias {printable(alias)}: expected letters, digits, _ and - (at most 255)")


def check_name(name: str) -> None:
    """Raises InputError for a name that no registered model may have."""
    if not re.fullmatch(NAME, name) or "@" in name:
        expected = "expected letters, digits, spaces and . _ + = - (at most 100)"
        raise InputError(f"{printable(name)}: {expected}; choose another name with --as")


def open_registry(settings: Settings) -> Registry:
    """Return the registry of where runs go; nothing is made before something is written."""
    return Registry(settings)


class Registry:
    """The registered models of a store. Every method raises TrackingError where MLflow cannot be used."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @contextmanager
    def understood(self) -> Iterator[None]:
        """Turn what MLflow raises into one line; that an account may only read, too."""
        with understood(self.settings):
            try:
                yield
            except Exception as error:
                denied = (
                    "error code 403" in str(error) or getattr(error, "error_code", "") == "PERMISSION_DENIED"
                )
                if not denied:
                    raise
                where = self.settings.mlflow_uri
                said = "this account may only read here; ask for the right to edit, or use another account"
                raise TrackingError(f"MLflow at {where}: {said}") from error

    @cached_property
    def client(self) -> Any:
        """A `MlflowClient`; MLflow is told the store for all of the process, because its registry looks there."""
        with self.understood():
            client = open_client(self.settings)
            import mlflow

            known = os.environ.get(TRACKING.variable)
            mlflow.set_tracking_uri(store_url(target_of(self.settings)))
            os.environ.pop(TRACKING.variable, None)  # it would name the store of every other folder, too
            if known is not None:
                os.environ[TRACKING.variable] = known
            return client

    @property
    def _blank(self) -> bool:
        uri = self.settings.mlflow_uri
        return not is_server(uri) and tracking_schema(uri).blank

    def models(self) -> tuple[Model, ...]:
        """All registered models, another program's among them, by name."""
        if self._blank:
            return ()
        with self.understood():
            found, token = [], None
            while True:
                page = self.client.search_registered_models(max_results=100, page_token=token)
                found += [_model(one) for one in page]
                token = page.token
                if not token:
                    return tuple(sorted(found, key=lambda model: model.name))

    def model(self, name: str) -> Model:
        """The registered model `name`. Raises ModelNotFound, RegistryError for another program's."""
        found = None if self._blank else self._get(name)
        if found is None:
            known = [model.name for model in self.models() if model.journal]
            hint = "; try: regtune model list" if known else ": none has been promoted yet"
            for near in get_close_matches(name, known, n=1):
                hint = f'; did you mean "{printable(near)}"?'
            raise ModelNotFound(f'no registered model "{printable(name)}"{hint}')
        if not found.journal:
            said = "a registered model of another program; choose another with --as"
            raise RegistryError(f"{printable(name)}: {said}")
        return found

    def _get(self, name: str) -> Model | None:
        if not re.fullmatch(NAME, name):
            return None
        with self.understood():
            from mlflow.exceptions import MlflowException

            try:
                return _model(self.client.get_registered_model(name))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None

    def create(self, name: str, experiment_id: str) -> Model:
        """The registered model `name` with its journal, made where there is none. Raises InputError, RegistryError."""
        check_name(name)
        if self._get(name) is not None:
            return self.model(name)
        with self.understood():
            run = self._unused_journal(name, experiment_id)
            try:
                described = (
                    "Registered by `regtune promote`. The description of a version is its model card; who moved an "
                    f"alias, when and why is in the [journal](#/experiments/{experiment_id}/runs/{run})."
                )
                self.client.create_registered_model(name, {names.JOURNAL: run}, described)
            except Exception as error:
                if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._get(name)
                if found is None or found.journal != run:
                    self.client.delete_run(run)
        return self.model(name)

    def require_edit(self, name: str, journal: str) -> None:
        """Write what is there: who may only read `name` is told before anything is trained."""
        with self.understood():
            self.client.set_registered_model_tag(name, names.JOURNAL, journal)

    def _unused_journal(self, name: str, experiment_id: str) -> str:
        """A run for the moves: one that a crash has left without its model, else a new one."""
        tags = {
            names.KIND: names.JOURNAL_KIND,
            names.MODEL: name,
            names.NOTE: _JOURNAL.format(markdown(name)),
        }
        wanted = f"tags.`{names.KIND}` = '{names.JOURNAL_KIND}' AND tags.`{names.MODEL}` = '{name}'"
        for left in self.client.search_runs([experiment_id], wanted):
            if not left.data.params:
                return str(left.info.run_id)
        run = self.client.create_run(experiment_id, tags=tags, run_name=f"journal of {name}")
        self.client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    def versions(self, name: str) -> tuple[Version, ...]:
        """All versions of `name`, the newest first, with the aliases that they have."""
        aliases = journal.read(self, name).aliases
        with self.understood():
            found, token = [], None
            while True:
                page = self.client.search_model_versions(f"name = '{name}'", page_token=token)
                found += [_version(one, aliases) for one in page]
                token = page.token
                if not token:
                    return tuple(sorted(found, key=lambda version: -version.number))

    def exists(self, name: str, number: int) -> bool:
        """Whether version `number` is there."""
        return self._version(name, number) is not None

    def _version(self, name: str, number: int) -> Any:
        with self.understood():
            from mlflow.exceptions import MlflowException

            try:
                return self.client.get_model_version(name, str(number))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None

    def find(self, target: str) -> Version:
        """The version that ``NAME[@alias]`` or ``NAME@v3`` names. Raises InputError, ModelNotFound, RegistryError."""
        name, alias = parse_target(target)
        aliases = journal.read(self, name).aliases
        if numbered := _NUMBER.fullmatch(alias):
            number = numbered[1]
        elif alias in aliases:
            number = str(aliases[alias])
        else:
            known = ", ".join(f"@{one}" for one in sorted(aliases)) or "no alias"
            raise ModelNotFound(f"{printable(name)}: no alias @{printable(alias)}; it has {known}")
        found = self._version(name, int(number)) if len(number) <= MOST_DIGITS else None
        if found is None:
            said = f"there is no version {number:.20}; try: regtune model list"
            raise ModelNotFound(f"{printable(name)}: {said}")
        return _version(found, aliases)

    def register(
        self,
        name: str,
        folder: Path,
        *,
        experiment_id: str,
        run_id: str,
        tags: Mapping[str, str],
        description: str,
    ) -> Version:
        """Upload a finished folder and make it the next version of `name`: whole, or not at all."""
        with self.understood():
            client = self.client
            from mlflow.entities import LoggedModelOutput

            logged = client.create_logged_model(
                experiment_id, name=re.sub(r"[^\w-]", "-", name), source_run_id=run_id
            )
            client.log_model_artifacts(logged.model_id, str(folder))
            client.finalize_logged_model(logged.model_id, "READY")
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
            made = client.create_model_version(
                name,
                source=f"models:/{logged.model_id}",
                run_id=run_id,
                tags=dict(tags),
                description=description,
                model_id=logged.model_id,
            )
            versions = json.dumps([{"name": name, "version": int(made.version)}])
            described = {names.MODEL_VERSIONS: versions, names.NOTE: description.partition(_SECTION)[0]}
            client.set_logged_model_tags(logged.model_id, described)
        return _version(made, {})

    def download(self, version: Version | Found, folder: Path) -> Path:
        """Download the files of a version into `folder`, unchecked, and return where they are."""
        with self.understood():
            client = self.client
            from mlflow.artifacts import download_artifacts

            uri = client.get_model_version_download_uri(version.name, str(version.number))
            return Path(download_artifacts(uri, dst_path=str(folder), tracking_uri=client.tracking_uri))


def _model(found: Any) -> Model:
    return Model(
        name=found.name,
        journal=found.tags.get(names.JOURNAL, "") if re.fullmatch(NAME, found.name) else "",
        aliases={alias: int(number) for alias, number in found.aliases.items()},
    )


def _version(found: Any, aliases: Mapping[str, int]) -> Version:
    number, source = int(found.version), str(found.source or "")
    logged = re.fullmatch(r"models:/(m-[0-9a-f]+)", source)
    return Version(
        name=found.name,
        number=number,
        aliases=tuple(sorted(alias for alias, to in aliases.items() if to == number)),
        run_id=found.run_id or None,
        model_id=logged[1] if logged else None,
        source=source,
        tags=dict(found.tags),
        description=found.description or "",
        created=_time(found.creation_timestamp),
    )


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
