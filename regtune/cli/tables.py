"""Boards, studies and trials as tables that fit the terminal; what does not fit is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from regtune.cli.drawing import ORDER, STYLES, WORDS, learning_curve, metric_text, percent, reason, span

if TYPE_CHECKING:
    from regtune.leaderboard import Comparison, Row, StudyInfo, StudySummary

_FIRST_TO_GO = ("seconds", "epochs", "gap", "state", "control")
_GAP = 2


def board_table(info: StudyInfo, rows: Sequence[Row], names: Sequence[str], width: int) -> RenderableType:
    """The leaderboard. Columns that do not fit are left out, the least telling first, and named below."""
    columns = [
        "rank",
        "trial",
        "state",
        info.metric,
        "val_accuracy",
        "gap",
        "epochs",
        "seconds",
        "control",
        *names,
    ]
    if info.metric == "val_accuracy":
        columns.remove("val_accuracy")
        columns.insert(3, columns.pop(columns.index(info.metric)))
    cells = [_board_cells(row, info.metric, names) for row in rows]
    columns, must = list(dict.fromkeys(columns)), ("rank", "trial", info.metric)
    head: Callable[[str], str] = str
    kept, dropped = _fitting(columns, cells, width, must, head)
    if dropped:
        head = _folded
        kept, dropped = _fitting(columns, cells, width, must, head)
    table = _table()
    for name in kept:
        left = name in ("state", "control") or any(isinstance(row.parameter(name), str) for row in rows)
        table.add_column(head(name), justify="left" if left else "right", no_wrap=True)
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


def _board_cells(row: Row, metric: str, names: Sequence[str]) -> Mapping[str, str]:
    return {
        "rank": str(row.rank) if row.rank else "",
        "trial": str(row.number),
        "state": WORDS[row.state],
        metric: metric_text(row.value),
        "val_accuracy": "–" if row.accuracy is None else f"{row.accuracy:.4f}",
        "gap": "–" if row.gap is None else f"{row.gap:+.4f}",
        "epochs": str(row.epochs),
        "seconds": f"{row.seconds:.1f}",
        "control": row.control or "",
        **{name: parameter_text(row.parameter(name)) for name in names},
    }


def _fitting(
    columns: Sequence[str],
    cells: Sequence[Mapping[str, str]],
    width: int,
    keep: Sequence[str],
    head: Callable[[str], str],
) -> tuple[list[str], list[str]]:
    wide = {
        name: max(len(text) for text in (*head(name).splitlines(), *(row[name] for row in cells))) + _GAP
        for name in columns
    }
    kept, dropped = list(columns), []
    parameters = [name for name in reversed(columns) if name not in (*_FIRST_TO_GO, "val_accuracy", *keep)]
    for name in (*_FIRST_TO_GO, *parameters, "val_accuracy"):
        if sum(wide[column] for column in kept) - _GAP <= width:
            break
        if name in kept:
            kept.remove(name)
            dropped.append(name)
    return kept, [name for name in columns if name in dropped]


def _folded(name: str) -> str:
    """A long heading in two lines, broken before the underscore nearest to its middle."""
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
    return str(value)


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
                "study": info.name,
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


def study_view(info: StudyInfo, best: Row | None, controls: Sequence[Row], width: int) -> RenderableType:
    """One study: what it is, how far it is, its best and its controls."""
    facts: dict[str, str] = {
        "study": info.name,
        "uid": info.uid,
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
    parameters = info.spec.get("parameters")
    if isinstance(parameters, dict) and parameters:
        searched = _table()
        searched.add_column("parameter", no_wrap=True)
        searched.add_column("searched", overflow="fold")
        for name, described in parameters.items():
            searched.add_row(name, _space_text(described))
        parts += [Text(), searched]
    if best:
        parts += [Text(), Text.assemble(("best  ", "dim"), f"trial {best.number}: {best.mix}")]
        parts.append(
            Text.assemble(
                ("      ", ""),
                (metric_text(best.value), "bold green"),
                f" {info.metric}, {percent(best.accuracy)} accuracy",
            )
        )
    if controls:
        parts += [Text(), board_table(info, controls, (), width)]
    return Group(*parts)


def trial_view(info: StudyInfo, row: Row, width: int, height: int = 14) -> RenderableType:
    """One trial: its parameters, figures, learning curve, how and why it ended."""
    record = row.record
    title = Text.assemble((f"trial {row.number}", "bold"), " of ", (info.name, "bold"), "  ")
    title.append(WORDS[row.state], style=STYLES[row.state])
    if row.rank:
        title.append(f", rank {row.rank}", style="dim")
    if record is None:
        return Group(title, Text("It waits to be taken up; nothing is known of it yet.", style="dim"))
    facts = {
        "techniques": record.config.mix + (f" (control: {row.control})" if row.control else ""),
        **{name: parameter_text(value) for name, value in record.parameters.items()},
        "seed": str(record.config.seed),
        "uid": record.uid,
        "epochs": f"{record.epochs} of at most {record.config.training.max_epochs}, {_pace(row)}",
        "ended": reason(record.end_reason, record.message),
    }
    if record.attempt > 1:
        facts["attempt"] = f"{record.attempt}, again for trial {record.retry_of}"
    parts: list[RenderableType] = [title, Text(), facts_table(facts)]
    kept = record.kept
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
    if record.epochs:
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
    text.append(f"trial {winner.number}: {winner.mix}{control}\n", style="bold")
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
    return ", ".join((str(name), *counts))


def _budget_text(info: StudyInfo) -> str:
    cap, timeout = info.budget.get("run_cap"), info.budget.get("timeout")
    parts = [f"{cap} trials"] if cap else []
    return ", ".join([*parts, *([span(timeout)] if timeout else [])])


def _space_text(described: Any) -> str:
    if not isinstance(described, dict):
        return str(described)
    return ", ".join(f"{key} {value}" for key, value in described.items() if value not in (None, False))
