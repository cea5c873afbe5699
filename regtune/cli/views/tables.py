"""Boards, studies and trials as tables that fit the terminal; hidden columns are named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len
from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from regtune.cli.terminal import counted, span
from regtune.cli.views import drawing
from regtune.cli.views.drawing import STYLES, WORDS, metric_text, percent
from regtune.config.trial import format_number
from regtune.escaping import printable
from regtune.study.decision_text import optimism_text, sentence

if TYPE_CHECKING:
    from regtune.search.space import Searched
    from regtune.study.board import Board, Comparison, StudySummary
    from regtune.study.decision import Decision
    from regtune.study.progress import Row, StudyInfo

GAP_NOTE = "gap: validation minus training cross-entropy of the kept weights; near 0 is good"
TECHNIQUES = "techniques"
GIVES_WAY = ("seconds", "epochs", TECHNIQUES, "state", "sparsity", "gap", "val_accuracy")
"""Columns that are hidden, in this order, until the others fit; at TECHNIQUES the parameters become one column."""
ROOM = 24
"""Characters that the techniques have at least, if it can be."""
FORMS = {
    "val_accuracy": ".4f",
    "gap": "+.4f",
    "sparsity": ".1%",
    "l2_norm": ".2f",
    "epochs": "d",
    "seconds": ".1f",
}
PLACEMENTS = {"before_activation": "before", "after_activation": "after"}


def table(*names: str, right: Iterable[str] = (), fold: Iterable[str] = ()) -> Table:
    """An empty table. right: columns of numbers. fold: columns that may take several lines."""
    empty = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False, header_style="bold"
    )
    for name in names:
        side: JustifyMethod = "right" if name in right else "left"
        folds = name in fold
        empty.add_column(name, justify=side, no_wrap=not folds, overflow="fold" if folds else "ellipsis")
    return empty


def facts_table(facts: Mapping[str, str | Text]) -> Table:
    """Names and values, one per line; empty values are left out."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        if value:
            grid.add_row(name, value)
    return grid


def board_table(board: Board, width: int) -> RenderableType:
    """Draw a leaderboard in at most `width` columns; hidden ones, never the one it is sorted by, are named below."""
    metric, names = board.info.metric, board.parameters
    must = {"rank", "trial", metric, board.by.name if board.by else "rank"}
    rare = {"l2_norm"} if any(name.partition(".")[0] == "l1" for name in names) else {"l2_norm", "sparsity"}
    rare |= set() if any(row.standing for row in board.rows) else {"decision"}
    shown = every = [name for name in board.columns if name in must or name not in rare]
    heads = {name: name for name in (*every, TECHNIQUES)}
    texts = [_board_texts(row, metric, names) for row in board.rows]
    if _width(every, heads, texts) > width:
        heads = {name: _folded(name) for name in heads}
        texts = [{name: PLACEMENTS.get(text, text) for name, text in row.items()} for row in texts]
    for hidden in GIVES_WAY:
        if _width(shown, heads, texts) <= width:
            break
        gone = {"control", *names} if hidden == TECHNIQUES else {hidden}
        shown = [name for name in shown if name in must or name not in gone]
        shown += [TECHNIQUES] if hidden == TECHNIQUES else []
    words = {name for name in names if any(isinstance(row.parameter(name), str) for row in board.rows)}
    words |= {"state", "decision", "control", TECHNIQUES}
    drawn = table()
    for name in shown:
        one = name != TECHNIQUES  # Rich narrows the others only where nothing else helps
        side: JustifyMethod = "left" if name in words else "right"
        drawn.add_column(heads[name], justify=side, no_wrap=one, overflow="ellipsis")
    for row, cells in zip(board.rows, texts, strict=True):
        chosen = "bold green" if row.standing == "chosen" else ""
        styles = {"state": STYLES[row.state], "decision": chosen}
        drawn.add_row(
            *(Text(cells[name], styles.get(name, ""), no_wrap=True, overflow="ellipsis") for name in shown),
            style="bold" if row.standing == "chosen" else "" if row.rank else "dim",
        )
    notes = [GAP_NOTE] if "gap" in shown and board.rows else []
    if left_out := [name for name in every if name not in shown]:
        notes.append(f"hidden columns: {', '.join(left_out)} (use --csv, or a wider terminal)")
    if board.by and board.rows:
        notes.append(f"sorted by {board.by.name}, {'descending' if board.by.largest_first else 'ascending'}")
    return Group(drawn, *(Text(note, style="dim") for note in notes))


def _board_texts(row: Row, metric: str, names: Sequence[str]) -> dict[str, str]:
    cells = row.cells(metric, names)
    figures = {name: "–" if cells[name] is None else format(cells[name], FORMS[name]) for name in FORMS}
    return {
        **figures,
        "rank": str(row.rank or ""),
        "trial": str(row.number),
        "state": WORDS[row.state],
        "decision": row.standing or "",
        metric: metric_text(cells[metric]) if metric not in figures else figures[metric],
        "control": printable(row.control or "").replace("_", " "),
        TECHNIQUES: drawing.techniques(row),
        **{name: parameter_text(cells[name]) for name in names},
    }


def _width(shown: Sequence[str], heads: Mapping[str, str], texts: Sequence[Mapping[str, str]]) -> int:
    """Characters that the columns take, with two between them; of the techniques ROOM are enough."""
    taken = 0
    for name in shown:
        widest = max(map(cell_len, (*heads[name].splitlines(), *(row[name] for row in texts))))
        taken += 2 + (min(widest, ROOM) if name == TECHNIQUES else widest)
    return taken - 2


def _folded(name: str) -> str:
    """A long heading in two lines; the rank as ``#``."""
    return "#" if name == "rank" else "\n_".join(name.rsplit("_", 1)) if len(name) > 8 else name


def parameter_text(value: Any) -> str:
    if value is None:
        return "–"
    return format_number(value) if isinstance(value, float) else printable(str(value))


def studies_table(summaries: Sequence[StudySummary], width: int) -> RenderableType:
    shown = ["study", "trials", "best", "accuracy", "chosen", "last active"]
    rows = []
    for summary in summaries:
        info, best, cap = summary.info, summary.best, summary.info.budget.get("run_cap")
        trials = f"{info.finished}/{cap}" if cap else str(info.finished)
        figures = (metric_text(best.value), percent(best.accuracy)) if best else ("–", "–")
        decision = info.decision
        chosen = decision and decision.judged(decision.chosen)
        of = chosen.candidate.name if chosen else "–"
        cells = printable(info.name), trials, *figures, of, when(info.last_active)
        rows.append(dict(zip(shown, cells, strict=True)))
    for name in ("last active", "accuracy", "chosen", "best"):
        if _width(shown, {head: head for head in shown}, rows) > width:
            shown.remove(name)
    drawn = table(*shown, right=("trials", "best", "accuracy"), fold=("study",))
    for row in rows:
        drawn.add_row(*(row[name] for name in shown))
    return drawn


def study_view(top: Board, width: int) -> RenderableType:
    """One study: its space, progress, best trial and controls. top: of `read_top`."""
    info, best = top.info, top.best
    cap, timeout = info.budget.get("run_cap"), info.budget.get("timeout")
    sizes = [f"{size:,} {key}" for key in ("train", "validation") if (size := info.data.get(key))]
    data = info.data.get("name") or info.spec.get("dataset", "")
    states = [f"{count} {word}" for state, word in WORDS.items() if (count := info.counts[state])]
    facts = {
        "study": printable(info.name),
        "uid": printable(info.uid),
        "description": str(info.spec.get("description", "")),
        "data": ", ".join((printable(str(data)), *sizes)),
        "method": str(info.spec.get("method", "")),
        "metric": f"{info.metric} ({info.goal})",
        "budget": ", ".join(filter(None, (cap and counted(cap, "trial"), timeout and span(timeout)))),
        "trials": ", ".join(states) or "none yet",
        "started": when(info.started),
        "last active": when(info.last_active),
    }
    parts: list[RenderableType] = [facts_table(facts)]
    if searched := _space_of(info):
        parts += [Text(), space_table(searched)]
    if info.decision:
        parts += [Text(), answer_view(info.decision)]
    elif best:
        parts += [Text(), best_text(best, info.metric)]
    if top.rows:
        heading = "candidates and controls" if info.decision else "best and controls"
        parts += [Text(), Text(heading, style="bold"), board_table(top, width)]
    return Group(*parts)


def answer_view(decision: Decision) -> Table:
    """A decision in its sentence, and what the search's own winner was worth."""
    return facts_table({"decision": Text(sentence(decision), "bold"), "search": optimism_text(decision)})


def best_text(best: Row, metric: str) -> Text:
    return Text.assemble(
        ("best  ", "dim"),
        (f"trial {best.number}: {drawing.techniques(best)}\n", "bold"),
        (f"      {metric_text(best.value)}", "bold green"),
        f" {metric}{_accuracy(best, metric)}",
    )


def _accuracy(row: Row, metric: str) -> str:
    return "" if metric == "val_accuracy" else f", {percent(row.accuracy)} accuracy"


def space_table(parameters: Sequence[Searched]) -> Table:
    names = ["parameter", "kind", "values"]
    names += ["only when"] if any(one.condition for one in parameters) else []
    drawn = table(*names, fold=names[1:])
    for one in parameters:
        drawn.add_row(*(one.name, one.kind, one.range, one.condition)[: len(names)])
    return drawn


def _space_of(info: StudyInfo) -> Sequence[Searched]:
    """The searched parameters; none where another version wrote the study's sweep file."""
    from regtune.config.sweepfile import SweepSpec
    from regtune.errors import RegtuneError
    from regtune.search import Space

    try:
        return Space(SweepSpec.from_dict({**info.spec, **info.budget})).rows
    except RegtuneError:
        return ()


def trial_view(info: StudyInfo, row: Row, width: int) -> RenderableType:
    """One trial: its parameters, figures, learning curve, and how and why it ended."""
    record = row.record
    title = Text.assemble((f"trial {row.number}", "bold"), " of ", (printable(info.name), "bold"), "  ")
    title.append(WORDS[row.state], style=STYLES[row.state])
    if row.rank:
        title.append(f", rank {row.rank}", style="dim")
    if record is None:
        foreign = "Another program added it; regtune did not train it and does not count it."
        why = foreign if row.state == "FOREIGN" else "It is queued; nothing else is known of it yet."
        if row.refused:
            why = f"Another program queued it; regtune refused it: {row.refused}"
        return Group(title, Text(why, style="dim"))
    waits = row.state == "WAITING"
    ended = drawing.reason(record)
    pace = f" ({row.seconds / row.epochs:.2f} s an epoch)" if row.epochs else ""
    epochs = f"{record.epochs} of at most {record.config.training.max_epochs}, {row.seconds:.1f} s{pace}"
    facts = {
        "techniques": ("control: " if row.control else "") + drawing.mix_text(row.mix, row.control),
        "decision": row.standing or "",
        **{name: parameter_text(value) for name, value in record.parameters.items()},
        "seed": str(record.config.seed),
        "uid": printable(record.uid),
        "epochs": "" if waits else epochs,
        "ended": "waiting: it restarts when the study resumes" if waits else ended,
        "attempt": f"{record.attempt}, a retry of trial {record.retry_of}" if record.attempt > 1 else "",
    }
    parts: list[RenderableType] = [title, Text(), facts_table(facts)]
    kept = None if waits else record.kept
    if kept:
        figures = table("", "cross-entropy", "accuracy", right=("cross-entropy", "accuracy"))
        loss, accuracy = kept.figures["val_cross_entropy"], kept.figures["val_accuracy"]
        figures.add_row("training", metric_text(kept.train_cross_entropy), percent(kept.train_accuracy))
        figures.add_row("validation", metric_text(loss), percent(accuracy))
        figures.add_row("gap", f"{kept.generalization_gap:+.4f}", "")
        parts += [Text(), Text(f"kept weights: epoch {kept.epoch}", style="dim"), figures]
        parts += [Text(GAP_NOTE, style="dim")]
    if record.epochs and not waits:
        losses = record.history["cross_entropy"], record.history["val_cross_entropy"]
        marked = kept.epoch if kept else None
        curve = drawing.learning_curve(*losses, width=min(width, 88), height=14, kept=marked)
        parts += [Text(), Text("cross-entropy by epoch, without the penalty", style="dim"), curve]
    return Group(*parts)


def comparison_text(comparison: Comparison) -> Text:
    """The best trial of the search beside no technique: single runs, of which none is said to be better."""
    metric, winner, none, above = comparison.metric, comparison.winner, comparison.baseline, comparison.above
    text = best_text(winner, metric)
    if none is None:
        text.append("\n      There is no finished control to compare with.")
    elif none != winner:
        text.append(f"\n      no technique: {metric_text(none.value)}{_accuracy(none, metric)}")
    if above is not None and above != none:
        control = f"{printable(above.control or '').replace('_', ' ')}, outside the search"
        text.append(f"\n      control {control}: {metric_text(above.value)}{_accuracy(above, metric)}")
    error = f"one run tells no standard error of {metric}"
    if comparison.standard_error is not None:
        points = 100 * comparison.standard_error
        error = f"the standard error of one accuracy, from its images alone, is ±{points:.2f} points"
    return text.append(f"\n      Single runs: a difference may be luck; {error}.", style="dim")


def when(moment: datetime | None) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M") if moment else "–"
