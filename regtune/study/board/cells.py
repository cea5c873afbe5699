"""The cells of a board as SQL: what `Row.cells` reads from a record, read by the database, to sort by.

A record is JSON text. SQLite reads it with `json_extract`, PostgreSQL with `json_extract_path`. Numbers and words are
two keys, because PostgreSQL's columns have one type; words compare by their code points, as in Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    ColumnElement,
    Float,
    Integer,
    Numeric,
    String,
    and_,
    case,
    cast,
    func,
    null,
    select,
)

from regtune.config.trial import RegularizationConfig, TrialConfig

_FIGURES = {"gap": "generalization_gap", "sparsity": "sparsity", "l2_norm": "l2_norm"}


@dataclass(frozen=True)
class Cell:
    """What a column shows of a row. number, word: one of them where it shows something, both NULL where nothing."""

    number: ColumnElement[Any]
    word: ColumnElement[Any]

    @property
    def empty(self) -> ColumnElement[bool]:
        """Whether there is nothing."""
        return and_(self.number.is_(None), self.word.is_(None))

    def otherwise(self, other: Cell) -> Cell:
        """This one, or `other` where there is nothing."""
        return Cell(
            case((self.empty, other.number), else_=self.number),
            case((self.empty, other.word), else_=self.word),
        )

    def only(self, condition: ColumnElement[bool]) -> Cell:
        """This one where `condition` holds, nothing elsewhere."""
        return Cell(case((condition, self.number)), case((condition, self.word)))


def number_cell(found: ColumnElement[Any]) -> Cell:
    """A cell that shows a number, or nothing where it is NULL."""
    return Cell(found, cast(null(), String))


def word_cell(found: ColumnElement[Any]) -> Cell:
    """A cell that shows a word, or nothing where it is NULL."""
    return Cell(cast(null(), Float), found)


class RecordCells:
    """The cells of the records in the text column `record`, in the SQL of `dialect`."""

    def __init__(self, record: ColumnElement[str], dialect: str) -> None:
        self._record = record
        self._sqlite = dialect == "sqlite"

    def figure(self, name: str) -> Cell:
        """One of METRICS of the kept weights, or of the last epoch where none are kept."""
        return self._at("kept", "figures", name).otherwise(self._at("history", name, -1))

    def kept(self, column: str) -> Cell:
        """`gap`, `sparsity` or `l2_norm`."""
        return self._at("kept", _FIGURES[column])

    def epochs(self) -> Cell:
        """Epochs trained."""
        if self._sqlite:
            found = func.json_array_length(self._record, _path(["epoch_ended_ms"]))
        else:
            found = func.json_array_length(self._element("epoch_ended_ms"))
        return number_cell(func.coalesce(cast(found, Integer), 0))

    def seconds(self) -> Cell:
        """Time spent in epochs, to the millisecond."""
        total = self._of_list(lambda item: func.sum(cast(item, Float)), "epoch_seconds")
        return number_cell(func.coalesce(func.round(total if self._sqlite else cast(total, Numeric), 3), 0))

    def again(self) -> Cell:
        """How far a trial is that repeats itself."""
        return self._at("again")

    def control(self) -> Cell:
        """The control's name."""
        return self._at("control")

    def parameter(self, name: str) -> Cell:
        """A searched parameter; one that a control was not given is read from its configuration."""
        return self._at("parameters", name).otherwise(self._configured(name))

    def _configured(self, name: str) -> Cell:
        """As `rows.parameter_of`."""
        key, _, layer = name.partition(".")
        if key in RegularizationConfig.model_fields:
            place = ("config", "regularization", key)
            if layer:
                index = int(layer) - 1 if layer.isdigit() else -1
                return self._at(*place, index) if index >= 0 else _NOTHING
            distinct = self._of_list(lambda item: func.count(item.distinct()), *place)
            return self._at(*place, 0).only(distinct == 1)
        if key == "hidden":
            join = func.group_concat if self._sqlite else func.string_agg
            joined = self._of_list(lambda item: join(item, "-"), "config", "model", "hidden")
            return word_cell(self.by_code_point(joined))
        for block in ("model", "training", "early_stopping"):
            if key in _fields_of(block):
                return self._at("config", block, key)
        return _NOTHING

    def has_parameter(self, name: str) -> ColumnElement[bool]:
        """Whether the record itself has the parameter."""
        return ~self._at("parameters", name).empty

    def _at(self, *path: str | int) -> Cell:
        if self._sqlite:
            kind = func.json_type(self._record, _path(path))
            found = func.json_extract(self._record, _path(path))
            number = case((kind.in_(("integer", "real", "true", "false")), cast(found, Float)))
            return Cell(number, case((kind == "text", found)))
        kind, text = func.json_typeof(self._element(*path)), self._text(*path)
        number = case(
            (kind == "number", cast(text, Float)), (kind == "boolean", cast(cast(text, Boolean), Integer))
        )
        return Cell(number, case((kind == "string", self.by_code_point(text))))

    def _element(self, *path: str | int) -> ColumnElement[Any]:
        return func.json_extract_path(cast(self._record, JSON), *map(str, path))

    def _text(self, *path: str | int) -> ColumnElement[Any]:
        return func.json_extract_path_text(cast(self._record, JSON), *map(str, path))

    def by_code_point(self, text: ColumnElement[Any]) -> ColumnElement[Any]:
        """Text that sorts as Python sorts it, whatever language the database speaks."""
        return text if self._sqlite else cast(text, String).collate("C")

    def _of_list(self, fold: Any, *path: str | int) -> ColumnElement[Any]:
        """What `fold` makes of the items of a list, as text in PostgreSQL."""
        if self._sqlite:
            items = func.json_each(self._record, _path(path)).table_valued("value")
        else:
            items = func.json_array_elements_text(self._element(*path)).table_valued("value")
        return select(fold(items.c.value)).scalar_subquery()


_NOTHING = Cell(cast(null(), Float), cast(null(), String))


def _path(path: Sequence[str | int]) -> str:
    """SQLite's path: ``$.parameters."dropout.1"``, ``$.history."val_loss"[#-1]``."""
    parts = (f'."{part}"' if isinstance(part, str) else f"[{part}]" for part in path)
    return "$" + "".join(parts).replace("[-", "[#-")


def _fields_of(block: str) -> Sequence[str]:
    found: Any = getattr(TrialConfig(), block)
    return tuple(type(found).model_fields)
