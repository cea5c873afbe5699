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

from regtune.cli.drawing import (
    NARROW,
    ORDER,
    STYLES,
    WORDS,
    counted,
    learning_curve,
    metric_text,
    mix_text,
    percent,
    reason,
    span,
)
from regtune.quoting import printable

if TYPE_CHECKING:
    from regtune.leaderboard import Comparison, Row, StudyInfo, StudySummary
    from regtune.plan import Searched
    from regtune.space.space import Row as Column

_FIRST_TO_GO = ("seconds", "epochs", "sparsity", "gap", "state", "val_accuracy")
_GAP = 2
_TECHNIQUES = "techniques"
_PLACEMENTS = {"before_activation": "before", "after_activation": "after"}
_BEST_FIRST = ("rank", "metric", "gap", "val_accuracy")


def board_table(info: StudyInfo, rows: Sequence[Row], names: Sequence[str], width: int) -> RenderableType:
    """The leaderboard. Columns that do not fit are left out, the least telling first, and named below.

    On a narrow terminal without room for every parameter the techniques are one column, cut where need be.
    """
    figures = ["val_accuracy", "gap", *(["sparsity"] if _has_l1(names) else []), "epochs", "seconds"]
    columns = ["rank", "trial", "state", info.metric, *figures, "control", *names]
    if info.metric == "val_accuracy":
        columns.insert(3, columns.pop(columns.index(info.metric)))
    columns, must = list(dict.fromkeys(columns)), ["rank", "trial", info.metric]
    cells = [_board_cells(row, info.metric, names) for row in rows]
    head: Callable[[str], str] = str
    kept, dropped = _fitting(columns, cells, width, must, head)
    room = 0
    if dropped:
        head = _folded
        cells = [{name: _PLACEMENTS.get(text, text) for name, text in row.items()} for row in cells]
        kept, dropped = _fitting(columns, cells, width, must, head)
        without = [name for name in names if name in dropped]
        if without and (width < NARROW or len(without) == len(names)):
            wide = _widths(must, cells, head)
            room = max(len(_TECHNIQUES), width - sum(wide.values()))
            kept, dropped = [*must, _TECHNIQUES], [name for name in columns if name not in must]
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
    if not dropped:
        return table
    return Group(table, Text(f"no room for: {', '.join(dropped)} (--csv and --json have all)", style="dim"))


def order_text(sort: str, metric: str) -> str:
    """What comes first when an order is turned round; empty when it is not."""
    if not sort.startswith("-"):
        return ""
    return "worst first" if sort.removeprefix("-") in (*_BEST_FIRST, metric) else "largest first"


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
        "epochs": figure("epochs", "d"),
        "seconds": figure("seconds", ".1f"),
        "control": printable(row.control or "").replace("_", " "),
        _TECHNIQUES: f"{'control: ' if row.control else ''}{mix_text(row.mix, row.control)}",
        **{name: parameter_text(row.parameter(name)) for name in names},
    }


def _widths(
    columns: Sequence[str], cells: Sequence[Mapping[str, str]], head: Callable[[str], str]
) -> dict[str, int]:
    return {
        name: max(len(text) for text in (*head(name).splitlines(), *(row[name] for row in cells))) + _GAP
        for name in columns
    }


def _fitting(
    columns: Sequence[str],
    cells: Sequence[Mapping[str, str]],
    width: int,
    keep: Sequence[str],
    head: Callable[[str], str],
) -> tuple[list[str], list[str]]:
    wide = _widths(columns, cells, head)
    kept, dropped = list(columns), []
    parameters = [name for name in reversed(columns) if name not in (*_FIRST_TO_GO, "control", *keep)]
    for name in (*_FIRST_TO_GO, *parameters, "control"):
        if sum(wide[column] for column in kept) - _GAP <= width:
            break
        if name in kept and name not in keep:
            kept.remove(name)
            dropped.append(name)
    return kept, [name for name in columns if name in dropped]


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
        from regtune.config import format_number

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


def study_view(info: StudyInfo, rows: Sequence[Row], names: Sequence[str], width: int) -> RenderableType:
    """One study: what it is, how far it is, its best and its controls. rows: those and maybe others, by rank."""
    from regtune.leaderboard import top_and_controls

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
    best = rows[0] if rows and rows[0].rank else None
    if best:
        said = mix_text(best.mix, best.control)
        parts += [Text(), Text.assemble(("best  ", "dim"), f"trial {best.number}: {said}")]
        parts.append(
            Text.assemble(
                ("      ", ""),
                (metric_text(best.value), "bold green"),
                f" {info.metric}, {percent(best.accuracy)} accuracy",
            )
        )
    shown = top_and_controls(rows, 1)
    if shown:
        parts += [Text(), Text("best and controls", style="bold"), board_table(info, shown, names, width)]
    return Group(*parts)


def space_table(parameters: Sequence[Searched | Column]) -> Table:
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


def _space_of(info: StudyInfo) -> Sequence[Column]:
    """The searched parameters; none where another version wrote the study's sweep file."""
    from regtune.errors import RegtuneError
    from regtune.space import Space
    from regtune.spec import SweepSpec

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
        return Group(title, Text("It waits to be taken up; nothing is known of it yet.", style="dim"))
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


def comparison_text(info: StudyInfo, found: Comparison) -> Text:
    """The winner against no technique, and how far to trust it."""
    winner = found.winner
    text = Text().append("best  ", style="dim")
    control = " (a control)" if winner.control else ""
    text.append(f"trial {winner.number}: {mix_text(winner.mix, winner.control)}{control}\n", style="bold")
    text.append(f"      {metric_text(winner.value)}", style="bold green")
    text.append(f" {info.metric}, {percent(winner.accuracy)} accuracy\n")
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
    if found.luck is None:
        text.append("One run each: small differences are luck.", style="dim")
    else:
        text.append(
            f"One run each; luck in one accuracy is about ±{100 * found.luck:.2f} points.", style="dim"
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
