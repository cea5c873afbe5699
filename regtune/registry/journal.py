"""The journal of a registered model: every move of its aliases, recorded before it is made.

MLflow sets each alias in a transaction of its own, so a crash between two leaves them apart. A move is therefore a
param of the journal's run first: MLflow writes a param once, on every store, so that of two who write one, one wins.
Then the aliases are set, then the tag MOVED says so. Whoever comes next completes a move that has no MOVED.

An alias that a person has set in MLflow's pages is the truth; the next move starts from it.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from regtune.config.trial import Frozen
from regtune.errors import AliasMoved, InputError, ModelNotFound, RegistryError
from regtune.escaping import printable, shell_word
from regtune.tracking import names

if TYPE_CHECKING:
    from regtune.registry.store import Registry

LONGEST_WHY = 1000
"""Characters of a reason: a param has room for 6,000."""
RACES = 20
"""How often another's move of another alias is given way to."""


class Move(Frozen):
    """One move of an alias. origin: the version it named before. by: account and machine. at: ISO 8601 in UTC."""

    alias: str
    to: int
    origin: int | None = Field(default=None, alias="from")
    why: str = ""
    forced: str | None = None
    by: str = ""
    at: str = ""

    def __str__(self) -> str:
        when = self.at[:16].replace("T", " ")
        return printable(
            f"@{self.alias} was moved to version {self.to} by {self.by} at {when} UTC ({self.why})"
        )


@dataclass(frozen=True)
class State:
    """Where the aliases of a registered model are, and how they came there.

    aliases: as MLflow has them; those of a move that was interrupted as it will have them. moved: how many of `moves`
    are complete. withdrawn: numbers of the moves that were given up, and why. notes: what a reader should know.
    """

    name: str
    journal: str
    moves: tuple[Move, ...] = ()
    moved: int = 0
    withdrawn: Mapping[int, str] = field(default_factory=dict)
    aliases: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def champion(self) -> int | None:
        return self.aliases.get(names.CHAMPION)

    @property
    def previous(self) -> int | None:
        return self.aliases.get(names.PREVIOUS)


def read(registry: Registry, name: str) -> State:
    """Where the aliases of `name` are; nothing is written. Raises ModelNotFound, RegistryError, TrackingError."""
    return _look(registry, name)[0]


def _look(registry: Registry, name: str) -> tuple[State, Mapping[str, int]]:
    """Where the aliases are, and what of that is in MLflow: journal and aliases as of one moment."""
    model = registry.model(name)
    with registry.understood():
        while True:
            run = _journal(registry, name, model.journal)
            before, model = model, registry.model(name)
            if model == before:
                break
        params, tags = run.data.params, run.data.tags
        moves = tuple(_moves(name, params))
        moved = min(int(tags.get(names.MOVED, "0")), len(moves))
        aliases = dict(model.aliases)
        for move in moves[moved:]:
            outcome = _outcome(move, aliases, lambda number: registry.exists(name, number))
            aliases = {alias: number for alias, number in outcome.aliases.items() if number is not None}
    given_up = {
        int(key.removeprefix(names.WITHDRAWN)): why
        for key, why in tags.items()
        if key.startswith(names.WITHDRAWN)
    }
    notes = []
    if moved < len(moves):
        notes.append("a move of its alias was interrupted; the next promote or rollback completes it")
    elif by_hand := _by_hand(moves, given_up, aliases):
        notes.append(by_hand)
    state = State(name, model.journal, moves, moved, given_up, aliases, tuple(notes))
    return state, model.aliases


def settle(registry: Registry, name: str) -> State:
    """Complete a move that was interrupted, or withdraw it where its version is gone; return where the aliases are."""
    for _ in range(RACES):
        state, aliases = _look(registry, name)
        if state.moved == len(state.moves):
            return state
        _finish(registry, state, aliases)
    raise RegistryError(f"{printable(name)}: its aliases are being moved without end; try again")


def move(
    registry: Registry,
    name: str,
    alias: str,
    to: int,
    expected: State,
    *,
    why: str,
    forced: str | None = None,
) -> State:
    """Point `alias` at version `to`; with `champion`, `previous` at the one before it.

    expected: what the decision to move it was based on. Raises AliasMoved when the alias was moved since, InputError
    for a version that is gone, TrackingError.
    """
    for _ in range(RACES):
        state = settle(registry, name)
        since = [one for one in state.moves[len(expected.moves) :] if one.alias == alias]
        before, now = expected.aliases.get(alias), state.aliases.get(alias)
        if since or before != now:
            what = str(since[-1]) if since else f"@{alias} was moved to {_version(now)} in MLflow"
            look = f"look at it with: regtune model show {shell_word(name)}"
            raise AliasMoved(f"{printable(name)}: {what} meanwhile, so it was left there; {look}")
        if not registry.exists(name, to):
            raise InputError(f"{printable(name)}: version {to} was deleted")
        wanted = Move.model_validate(
            {
                "alias": alias,
                "to": to,
                "from": now,
                "why": why[:LONGEST_WHY],
                "forced": forced and forced[:LONGEST_WHY],
                "by": _me(),
                "at": datetime.now(UTC).isoformat(),
            }
        )
        if _record(registry, state, wanted):
            done = settle(registry, name)
            if why_not := done.withdrawn.get(len(state.moves) + 1):
                kind = AliasMoved if registry.exists(name, to) else InputError
                raise kind(f"{printable(name)}: @{alias} was not moved to version {to}: {why_not}")
            return done
    raise RegistryError(f"{printable(name)}: its aliases are being moved without end; try again")


def roll_back(registry: Registry, name: str) -> State:
    """Make the previous champion the champion again, and the champion the previous one."""
    state = settle(registry, name)
    if state.previous is None:
        raise ModelNotFound(f"{printable(name)}: there is no previous champion to go back to")
    why = f"rolled back from {_version(state.champion)}"
    return move(registry, name, names.CHAMPION, state.previous, state, why=why)


def _record(registry: Registry, state: State, wanted: Move) -> bool:
    """Record a move as the next one; return whether nobody else has recorded one in its place."""
    key = f"{names.MOVE}{len(state.moves) + 1}"
    value = wanted.model_dump_json(by_alias=True)
    with registry.understood():
        try:
            registry.client.log_param(state.journal, key, value)
        except Exception as error:
            if "Changing param values is not allowed" not in str(error):
                raise
            return False
    return True


def _finish(registry: Registry, state: State, before: Mapping[str, int]) -> None:
    """Set the aliases of the moves that were interrupted, then say that they are set.

    before: the aliases as MLflow had them when the journal was read; later ones may be those of a later move.
    """
    client, name = registry.client, state.name
    with registry.understood():
        aliases: Mapping[str, int | None] = before
        tags = {names.MOVED: str(len(state.moves))}
        for number, pending in enumerate(state.moves[state.moved :], state.moved + 1):
            outcome = _outcome(pending, aliases, lambda version: registry.exists(name, version))
            aliases = outcome.aliases
            if outcome.withdrawn:
                tags[f"{names.WITHDRAWN}{number}"] = outcome.withdrawn
        touched = {pending.alias for pending in state.moves[state.moved :]}
        order = sorted(touched) + ([names.PREVIOUS] if names.CHAMPION in touched else [])
        for alias in order:
            found = aliases.get(alias)
            try:
                if found is None:
                    client.delete_registered_model_alias(name, alias)
                else:
                    client.set_registered_model_alias(name, alias, str(found))
            except Exception:  # MLflow inserts an alias, which fails where another completes the same move
                if registry.model(name).aliases.get(alias) != found:
                    raise
        from mlflow.entities import RunTag

        client.log_batch(state.journal, tags=[RunTag(key, value) for key, value in tags.items()])


@dataclass(frozen=True)
class _Outcome:
    aliases: Mapping[str, int | None]
    withdrawn: str = ""


def _outcome(pending: Move, aliases: Mapping[str, int | None], exists: Callable[[int], bool]) -> _Outcome:
    """What a recorded move makes of the aliases. A person who has moved it since has the last word."""
    now = aliases.get(pending.alias)
    origin = pending.origin if pending.origin is not None and exists(pending.origin) else None
    if now not in (None, pending.origin, pending.to):
        return _Outcome(aliases, f"it was moved to {_version(now)} in MLflow")
    if not exists(pending.to):
        return _Outcome({**aliases, pending.alias: origin}, f"version {pending.to} was deleted")
    changed: dict[str, int | None] = {**aliases, pending.alias: pending.to}
    if pending.alias == names.CHAMPION and origin != pending.to:
        changed[names.PREVIOUS] = origin
    return _Outcome(changed)


def _moves(name: str, params: Mapping[str, str]) -> Iterator[Move]:
    number = 1
    while (text := params.get(f"{names.MOVE}{number}")) is not None:
        try:
            yield Move.model_validate_json(text)
        except ValidationError:
            said = f"move {number} of its journal cannot be read; was it written by another version?"
            raise RegistryError(f"{printable(name)}: {said}") from None
        number += 1


def _journal(registry: Registry, name: str, run_id: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        run = registry.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        gone = (
            f"its journal, MLflow's run {run_id}, is gone; restore a backup, or choose another name with --as"
        )
        raise RegistryError(f"{printable(name)}: {gone}") from None
    if run.info.lifecycle_stage == "deleted":
        restore = f"restore it with: mlflow runs restore --run-id {run_id}"
        raise RegistryError(f"{printable(name)}: its journal, MLflow's run {run_id}, was deleted; {restore}")
    return run


def _by_hand(moves: tuple[Move, ...], withdrawn: Mapping[int, str], aliases: Mapping[str, int]) -> str:
    last = {move.alias: move for number, move in enumerate(moves, 1) if number not in withdrawn}
    for alias, move in last.items():
        if aliases.get(alias) != move.to:
            now = aliases.get(alias)
            does = "was removed" if now is None else f"was moved to version {now}"
            return f"@{alias} {does} in MLflow; regtune had moved it to version {move.to}"
    return ""


def _version(number: int | None) -> str:
    return "no version" if number is None else f"version {number}"


def _me() -> str:
    try:
        account = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in some containers
        account = "unknown"
    return f"{account} on {socket.gethostname()}"
