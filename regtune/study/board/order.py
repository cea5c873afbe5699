"""Which rows, and in which order: ranked, sorted and limited by the database, so that no other row is read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, String, case, cast, func, select

from regtune.study.board.cells import Cell, RecordCells, number_cell, word_cell
from regtune.study.board.rows import Row, StudyInfo
from regtune.study.board.tables import TRIAL_ATTRIBUTES, VALUES, trials_of, value_of
from regtune.study.record import ORIGIN, RECORD, State

_STATES: Sequence[State] = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING", "FOREIGN")
_BATCH = 500
_NAME = re.compile(r"[\w.-]+")
_CONTROL, _NOT_AGAIN = '"kind": "control"', '"control": null'
"""What an origin's JSON text has, as `json.dumps` writes it, for a control, and for all but a control's retry."""


class Heads:
    """Rows without their records, of the study `study_id`.

    By rank: complete trials from the best on, then pruned, failed, running, waiting and foreign ones, each by their
    value and then by their number.
    """

    def __init__(self, connection: Connection, study_id: int, info: StudyInfo) -> None:
        self._connection = connection
        self._info = info
        trials = trials_of(study_id, info)
        kind = cast(VALUES.c.value_type, String)
        largest_first = info.goal == "maximize"
        best = "INF_POS" if largest_first else "INF_NEG"
        amount = -VALUES.c.value if largest_first else VALUES.c.value
        value = (
            (VALUES.c.trial_id == trials.c.trial_id)
            & (VALUES.c.objective == 0)
            & (trials.c.state != "FOREIGN")  # whatever it is, it is not compared
        )
        order = (
            case({name: place for place, name in enumerate(_STATES)}, value=trials.c.state),
            case({best: 0, "FINITE": 1}, value=kind, else_=2),
            amount,
            trials.c.number,
        )
        self._rows = (
            select(
                trials.c.trial_id,
                trials.c.number,
                trials.c.state,
                VALUES.c.value,
                kind.label("kind"),
                func.row_number().over(order_by=order).label("place"),
            )
            .select_from(trials.outerjoin(VALUES, value))
            .subquery()
        )
        self._text: ColumnElement[str] = TRIAL_ATTRIBUTES.c.value_json
        self._cells = RecordCells(self._text, connection.dialect.name)

    def ranked(self, limit: int | None = None, states: Collection[State] = _STATES) -> list[Row]:
        """Rows by rank, at most `limit`."""
        chosen = select(self._rows).order_by(self._rows.c.place).limit(limit)
        if set(states) != set(_STATES):
            chosen = chosen.where(self._rows.c.state.in_(states))
        return list(self._read(chosen))

    def numbered(self, numbers: Collection[int]) -> list[Row]:
        """The rows of these trials, by number."""
        wanted, found = sorted(numbers), list[Row]()
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            chosen = select(self._rows).where(self._rows.c.number.in_(batch)).order_by(self._rows.c.number)
            found += self._read(chosen)
        return found

    def sorted(self, column: str, largest_first: bool, limit: int | None = None) -> list[Row]:
        """Rows in the order of a column of the board or a parameter; those without a value last, ties by rank."""
        cell = self._cell(column)
        keys = [cell.number, cell.word]
        order = [(key.desc() if largest_first else key.asc()).nulls_last() for key in keys]
        empty = case((cell.empty, 1), else_=0)
        chosen = self._with(RECORD).order_by(empty, *self._infinite(column, largest_first), *order)
        return list(self._read(chosen.order_by(self._rows.c.place).limit(limit)))

    def top_and_controls(self, count: int) -> list[Row]:
        """By rank: the best `count`, and every control."""
        best = (self._rows.c.place <= count) & (self._rows.c.state == "COMPLETE")
        chosen = self._with(ORIGIN).where(best | self._is_control()).order_by(self._rows.c.place)
        return list(self._read(chosen))

    def first_of_the_search(self) -> list[Row]:
        """The first trial that is no control, if there is one."""
        begun = self._rows.c.state.in_(("COMPLETE", "PRUNED", "FAIL"))
        chosen = self._with(ORIGIN).where(begun & ~self._is_control()).order_by(self._rows.c.number)
        return list(self._read(chosen.limit(1)))

    def known(self, parameter: str) -> bool:
        """Whether any trial has the parameter."""
        if not _NAME.fullmatch(parameter):
            return False
        chosen = self._with(RECORD).where(self._cells.has_parameter(parameter)).limit(1)
        return next(self._read(chosen), None) is not None

    def _read(self, chosen: Select[Any]) -> Iterator[Row]:
        for found in self._connection.execute(chosen):
            rank = found.place if found.state == "COMPLETE" else None
            yield Row(found.number, found.state, value_of(found.value, found.kind), None, rank)

    def _with(self, attribute: str) -> Select[Any]:
        """The rows, each beside an attribute of its trial where it has that."""
        rows, attributes = self._rows, TRIAL_ATTRIBUTES
        own = (attributes.c.trial_id == rows.c.trial_id) & (rows.c.state != "FOREIGN")
        return select(rows).select_from(rows.outerjoin(attributes, own & (attributes.c.key == attribute)))

    def _is_control(self) -> ColumnElement[bool]:
        """Whether the origin is that of a control, or of one that is tried again."""
        find = func.instr if self._connection.dialect.name == "sqlite" else func.strpos
        control, not_again = find(self._text, _CONTROL), find(self._text, _NOT_AGAIN)
        return func.coalesce((control > 0) | (not_again == 0), False)

    def _infinite(self, column: str, largest_first: bool) -> list[ColumnElement[Any]]:
        """An infinite value of the metric stands before or behind all others."""
        if column != self._info.metric or column == "val_accuracy":
            return []
        first = "INF_POS" if largest_first else "INF_NEG"
        return [case({first: 0, "FINITE": 1}, value=self._rows.c.kind, else_=2)]

    def _cell(self, column: str) -> Cell:
        """As `Row.cells`: what a trial is called and given it has from the beginning, figures once it is trained."""
        rows, cells = self._rows, self._cells
        if column == "trial":
            return number_cell(rows.c.number)
        if column == "rank":
            return number_cell(case((rows.c.state == "COMPLETE", rows.c.place)))
        if column == "state":
            return word_cell(cells.by_code_point(rows.c.state))
        if column == "control":
            return cells.control()
        figure = self._figure(column)
        if figure is None:
            return cells.parameter(column)
        return figure.only(rows.c.state.not_in(("WAITING", "FOREIGN")) & cells.again().empty)

    def _figure(self, column: str) -> Cell | None:
        """A column that shows a figure; None for a parameter."""
        if column == "val_accuracy":
            return self._cells.figure(column)
        if column == self._info.metric:
            ends = {"INF_POS": 1.0, "INF_NEG": -1.0}
            return number_cell(case(ends, value=self._rows.c.kind, else_=self._rows.c.value))
        if column in ("gap", "sparsity", "l2_norm"):
            return self._cells.kept(column)
        return {"epochs": self._cells.epochs, "seconds": self._cells.seconds}.get(column, lambda: None)()
