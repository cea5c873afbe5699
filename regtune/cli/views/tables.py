"""Boards, studies and trials as tables that fit the terminal; what does not fit is named."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from regtune.cli.views.drawing import (
    ORDER,
    STYLES,
    WORDS,
    configured,
    counted,
    learning_curve,
    metric_text,
    mix_text,
    percent,
    reason,
    span,
    techniques,
)
from regtune.escaping import printable

if TYPE_CHECKING:
    from regtune.search.space import Searched
    from regtune.study.board import Board, Comparison, Row, StudyInfo, StudySummary

_EFFORT = ("seconds", "epochs")
_ROOM = ((_EFFORT, 60), (("state",), 26), (("sparsity", "gap", "val_accuracy"), 18))
"""What goes where the techniques have no room, up to so many characters: what a trial took first, its figures last."""
_GAP = 2
_GAP_TEXT = "gap: validation minus training cross-entropy of the kept weights; near 0 is good"
_TECHNIQUES = "techniques"
_PLACEMENTS = {"before_activation": "before", "after_activation": "after"}


def board_table(board: Board, width: int) -> RenderableType:
    """The leaderboard, in the order of the column `by`, which is always shown; of the rank without.

    Without room for every column first what a trial took goes; then the parameters are one column, cut where need be,
    so that the figures stay. What is not shown is named below.
    """
    info, rows, names, by = board.info, board.rows, board.parameters, board.by
    must = list(dict.fromkeys(["rank", "trial", info.metric, *([by.name] if by else [])]))
    some = {"l2_norm", *(() if _has_l1(names) else ("sparsity",))} - set(must)
    columns = [name for name in board.columns if name not in some]
    cells = [_board_cells(row, info.metric, names) for row in rows]
    head: Callable[[str], str] = str
    kept, room = columns, 0
    if _wide(kept, cells, head) > width:
        head = _folded
        cells = [{name: _PLACEMENTS.get(text, text) for name, text in row.items()} for row in cells]
        kept = _without(kept, [name for name in _EFFORT if name not in must], cells, width, head)
    if _wide(kept, cells, head) > width:
        kept = [name for name in columns if name in must or name not in ("control", *names)]
        for goes, least in _ROOM:
            left = width - _GAP - min(least, _wide([_TECHNIQUES], cells, head))
            kept = _without(kept, [name for name in goes if name not in must], cells, left, head)
        room = max(len(_TECHNIQUES), width - _wide(kept, cells, head) - _GAP)
        kept = [*kept, _TECHNIQUES]
    dropped = [name for name in columns if name not in kept]
    table = _table()
    for name in kept:
        left = name in ("state", "control", _TECHNIQUES)
        left = left or any(isinstance(row.parameter(name), str) for row in rows)
        most = room if name == _TECHNIQUES else None
        table.add_column(
            head(name), justify="left" if left else "right", no_wrap=True, overflow="ellipsis", max_width=most
        )
    for row, values in zip(rows, cells, strict=True):
        style = "bold" if row.rank == 1 else "" if row.rank else "dim"
        table.add_row(
            *(
                Text(values[name], style=STYLES[row.state]) if name == "state" else values[name]
                for name in kept
            ),
            style=style,
        )
    notes = [_GAP_TEXT] if "gap" in kept and rows else []
    if dropped:
        notes.append(f"no room for: {', '.join(dropped)} (--csv and --json have all)")
    if by and rows:
        notes.append(f"by {by.name}, {'descending' if by.largest_first else 'ascending'}")
    return Group(table, *(Text(note, style="dim") for note in notes))


def _has_l1(names: Sequence[str]) -> bool:
    return any(name.partition(".")[0] == "l1" for name in names)


def _board_cells(row: Row, metric: str, names: Sequence[str]) -> Mapping[str, str]:
    found = row.cells(metric, names)

    def figure(name: str, form: str) -> str:
        return "–" if found[name] is None else format(found[name], form)

    return {
        "rank": str(row.rank) if row.rank else "",
        "trial": str(row.number),
        "state": WORDS[row.state],
        "val_accuracy": figure("val_accuracy", ".4f"),
        metric: metric_text(found[metric]),
        "gap": figure("gap", "+.4f"),
        "sparsity": figure("sparsity", ".1%"),
        "l2_norm": figure("l2_norm", ".2f"),
        "epochs": figure("epochs", "d"),
        "seconds": figure("seconds", ".1f"),
        "control": printable(row.control or "").replace("_", " "),
        _TECHNIQUES: techniques(row),
        **{name: parameter_text(row.parameter(name)) for name in names},
    }


def _wide(columns: Sequence[str], cells: Sequence[Mapping[str, str]], head: Callable[[str], str]) -> int:
    """Characters that the columns take, with the gaps between them."""
    texts = ((*head(name).splitlines(), *(row[name] for row in cells)) for name in columns)
    return sum(max(map(len, found)) + _GAP for found in texts) - _GAP


def _without(
    columns: Sequence[str],
    goes: Sequence[str],
    cells: Sequence[Mapping[str, str]],
    width: int,
    head: Callable[[str], str],
) -> list[str]:
    """The columns without those of `goes`, in their order, that have no room."""
    kept = list(columns)
    for name in goes:
        if name in kept and _wide(kept, cells, head) > width:
            kept.remove(name)
    return kept


def _folded(name: str) -> str:
    """A long heading in two lines, broken before the underscore nearest to its middle; a rank is a number."""
    if name == "rank":
        return "#"
    places = [place for place, character in enumerate(name) if character == "_"]
    if len(name) <= 8 or not places:
        return name
    at = min(places, key=lambda place: abs(place - len(name) / 2))
    return f"{name[:at]}\n{name[at:]}"


def parameter_text(value: Any) -> str:
    """A parameter's value for people: three significant digits."""
    if value is None:
        return "–"
    if isinstance(value, float):
        from regtune.config.trial import format_number

        return format_number(value)
    return printable(str(value))


def studies_table(summaries: Sequence[StudySummary], width: int) -> RenderableType:
    """All studies, the last active first."""
    table = _table()
    columns: dict[str, Literal["left", "right"]] = {
        "study": "left",
        "trials": "right",
        "best": "right",
        "accuracy": "right",
        "last active": "left",
    }
    rows = []
    for summary in summaries:
        info, best = summary.info, summary.best
        cap = info.budget.get("run_cap")
        rows.append(
            {
                "study": printable(info.name),
                "trials": f"{info.finished}/{cap}" if cap else str(info.finished),
                "best": metric_text(best.value) if best else "–",
                "accuracy": percent(best.accuracy) if best else "–",
                "last active": when(info.last_active),
            }
        )
    wide = {name: max([len(name), *(len(row[name]) for row in rows)]) + _GAP for name in columns}
    kept = list(columns)
    for name in ("last active", "accuracy", "best"):
        if sum(wide[column] for column in kept) <= width:
            break
        kept.remove(name)
    for name in kept:
        table.add_column(name, justify=columns[name], no_wrap=name != "study", overflow="fold")
    for row in rows:
        table.add_row(*(row[name] for name in kept))
    return table


def study_view(top: Board, width: int) -> RenderableType:
    """One study: what it is, how far it is, its best and its controls. top: those, of `read_top`."""
    info, best = top.info, top.best
    facts: dict[str, str] = {
        "study": printable(info.name),
        "uid": printable(info.uid),
        "description": str(info.spec.get("description", "")),
        "data": _data_text(info),
        "method": str(info.spec.get("method", "")),
        "metric": f"{info.metric} ({info.goal})",
        "budget": _budget_text(info),
        "trials": ", ".join(f"{info.counts[state]} {WORDS[state]}" for state in ORDER if info.counts[state])
        or "none yet",
        "begun": when(info.started),
        "last active": when(info.last_active),
    }
    parts: list[RenderableType] = [facts_table(facts)]
    searched = _space_of(info)
    if searched:
        parts += [Text(), space_table(searched)]
    if best:
        parts += [Text(), Text.assemble(("best  ", "dim"), f"trial {best.number}: {configured(best)}")]
        parts.append(
            Text.assemble(
                ("      ", ""),
                (metric_text(best.value), "bold green"),
                f" {info.metric}, {percent(best.accuracy)} accuracy",
            )
        )
    if top.rows:
        parts += [Text(), Text("best and controls", style="bold"), board_table(top, width)]
    return Group(*parts)


def space_table(parameters: Sequence[Searched]) -> Table:
    """What is searched: a line for each parameter."""
    table = _table()
    conditional = any(found.condition for found in parameters)
    for name in ("parameter", "kind", "values") + (("only when",) if conditional else ()):
        table.add_column(name, no_wrap=name == "parameter", overflow="fold")
    for found in parameters:
        cells = (found.name, found.kind, exponents(found.range))
        table.add_row(*cells, *((exponents(found.condition),) if conditional else ()))
    return table


def exponents(text: str) -> str:
    """Numbers of full precision as `format_number` writes them: ``1e-5``, not ``1e-05``."""
    return re.sub(r"(?<=\de)([+-])0*(?=\d)|(?<=\d)\.0(?=e)", lambda found: (found[1] or "").strip("+"), text)


def _space_of(info: StudyInfo) -> Sequence[Searched]:
    """The searched parameters; none where another version wrote the study's sweep file."""
    from regtune.config.sweepfile import SweepSpec
    from regtune.errors import RegtuneError
    from regtune.search import Space

    try:
        return Space(SweepSpec.from_dict({**info.spec, **info.budget})).rows
    except RegtuneError:
        return ()


def trial_view(info: StudyInfo, row: Row, width: int, height: int = 14) -> RenderableType:
    """One trial: its parameters, figures, learning curve, how and why it ended."""
    record = row.record
    title = Text.assemble((f"trial {row.number}", "bold"), " of ", (printable(info.name), "bold"), "  ")
    title.append(WORDS[row.state], style=STYLES[row.state])
    if row.rank:
        title.append(f", rank {row.rank}", style="dim")
    if record is None:
        said = "It waits to be taken up; nothing is known of it yet."
        if row.state == "FOREIGN":
            said = "Another program put it here; regtune did not train it, and it counts for nothing."
        if row.refused:
            said = f"Another program queued it; it was refused: {row.refused}"
        return Group(title, Text(said, style="dim"))
    waits = row.state == "WAITING"
    facts = {
        "techniques": mix_text(row.mix, row.control) + (" (a control)" if row.control else ""),
        **{name: parameter_text(value) for name, value in record.parameters.items()},
        "seed": str(record.config.seed),
        "uid": printable(record.uid),
        "epochs": ""
        if waits
        else f"{record.epochs} of at most {record.config.training.max_epochs}, {_pace(row)}",
        "ended": "waiting: it begins anew when the study goes on"
        if waits
        else reason(record.end_reason, record.message),
    }
    if record.attempt > 1:
        facts["attempt"] = f"{record.attempt}, again for trial {record.retry_of}"
    parts: list[RenderableType] = [title, Text(), facts_table(facts)]
    kept = None if waits else record.kept
    if kept:
        figures = _table()
        for name in ("", "cross-entropy", "accuracy"):
            figures.add_column(name, justify="right" if name else "left")
        figures.add_row("training", metric_text(kept.train_cross_entropy), percent(kept.train_accuracy))
        figures.add_row(
            "validation",
            metric_text(kept.figures["val_cross_entropy"]),
            percent(kept.figures["val_accuracy"]),
        )
        figures.add_row("gap", f"{kept.generalization_gap:+.4f}", "")
        parts += [Text(), Text(f"kept weights: epoch {kept.epoch}", style="dim"), figures]
        parts.append(Text(_GAP_TEXT, style="dim"))
    if record.epochs and not waits:
        curve = learning_curve(
            record.history["cross_entropy"],
            record.history["val_cross_entropy"],
            width=min(width, 88),
            height=height,
            kept=kept.epoch if kept else None,
        )
        parts += [Text(), Text("cross-entropy by epoch, without the penalty", style="dim"), curve]
    return Group(*parts)


def comparison_text(found: Comparison) -> Text:
    """The winner against no technique, and how far to trust it."""
    winner = found.winner
    text = Text().append("best  ", style="dim")
    control = " (a control)" if winner.control else ""
    text.append(f"trial {winner.number}: {configured(winner)}{control}\n", style="bold")
    text.append(f"      {metric_text(winner.value)}", style="bold green")
    text.append(f" {found.metric}, {percent(winner.accuracy)} accuracy\n")
    text.append("      ")
    if found.baseline is winner:
        text.append("No technique does better than none here so far.")
    elif found.better_by is None:
        text.append("There is no control to compare with (controls: false, or not finished).")
    else:
        word = "better" if found.better_by >= 0 else "worse"
        text.append(f"{metric_text(abs(found.better_by))} {word} than no technique")
        if found.accuracy_by is not None:
            text.append(f", {100 * found.accuracy_by:+.2f} points of accuracy")
        text.append(".")
    text.append("\n      ")
    if found.standard_error is None:
        text.append("One run each: small differences are luck.", style="dim")
    else:
        text.append(
            f"One run each; luck in one accuracy is about ±{100 * found.standard_error:.2f} points.",
            style="dim",
        )
    return text


def facts_table(facts: Mapping[str, str]) -> Table:
    """Names and values, one a line; empty values are left out."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value:
            table.add_row(name, value)
    return table


def when(moment: datetime | None) -> str:
    """A moment in local time."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M") if moment else "–"


def plain_table() -> Table:
    """An empty table in the common style."""
    return _table()


def _table() -> Table:
    return Table(
        box=box.SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), show_edge=False, pad_edge=False, header_style="bold"
    )


def _pace(row: Row) -> str:
    return f"{row.seconds:.1f} s" + (f" ({row.seconds / row.epochs:.2f} s an epoch)" if row.epochs else "")


def _data_text(info: StudyInfo) -> str:
    name = info.data.get("name") or info.spec.get("dataset", "")
    counts = [
        f"{info.data[key]:,} {key}" for key in ("train", "validation") if isinstance(info.data.get(key), int)
    ]
    return ", ".join((printable(str(name)), *counts))


def _budget_text(info: StudyInfo) -> str:
    cap, timeout = info.budget.get("run_cap"), info.budget.get("timeout")
    parts = [counted(cap, "trial")] if cap else []
    return ", ".join([*parts, *([span(timeout)] if timeout else [])])
