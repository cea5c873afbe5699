"""Registered models as tables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from regtune.cli.terminal import span
from regtune.cli.views.drawing import percent
from regtune.cli.views.tables import facts_table, table
from regtune.escaping import printable
from regtune.tracking import names

if TYPE_CHECKING:
    from regtune.registry.promote import Promotion
    from regtune.registry.store import Version
    from regtune.registry.verify import Verified
    from regtune.registry.version import Figures, Gate

WENT = {True: ("passed", "green"), False: ("refused", "bold red"), None: ("not asked", "dim")}


def versions_table(versions: Sequence[Version]) -> RenderableType:
    """One row a version."""
    drawn = table(
        "model", "version", "aliases", "test accuracy", "age", "from", right=("version", "test accuracy")
    )
    for version in versions:
        drawn.add_row(
            printable(version.name),
            str(version.number),
            ", ".join(f"@{alias}" for alias in version.aliases),
            _accuracy(version.tags.get(names.TEST_ACCURACY)),
            _age(version.created),
            _source(version),
        )
    return drawn


def gates_table(gates: Sequence[Gate]) -> RenderableType:
    """One row a gate: how it went, its figure and its limit."""
    drawn = table("gate", "", "figure", "limit", "of what", fold=("figure", "limit", "of what"))
    for gate in gates:
        word, style = WENT[gate.passed]
        drawn.add_row(
            gate.name, Text(word, style=style), gate.figure, gate.limit, Text(printable(gate.note), "dim")
        )
    return drawn


def promoted_line(promotion: Promotion) -> str:
    """What was registered, in one line."""
    record = promotion.record
    assert record is not None
    test, name = record.test, printable(promotion.name)
    accuracy = f"{percent(test.accuracy)} ({percent(record.accuracy_low)} to {percent(record.accuracy_high)})"
    forced = " by force" if promotion.forced else ""
    return (
        f"{name}: version {promotion.version} is @{promotion.alias}{forced}; accuracy {accuracy} "
        f"on {test.images:,} test images"
    )


def _accuracy(tag: str | None) -> str:
    try:
        return percent(None if tag is None else float(tag))
    except ValueError:  # a person may have changed the tag
        return printable(str(tag))


def _age(created: datetime) -> str:
    seconds = (datetime.now(UTC) - created).total_seconds()
    return span(seconds) if seconds < 2 * 86400 else f"{seconds / 86400:.0f} days"


def _source(version: Version) -> str:
    study, number = version.tags.get(names.STUDY_NAME), version.tags.get(names.NUMBER)
    if study is None:
        return "not by regtune" if names.MANIFEST_DIGEST not in version.tags else ""
    return printable(f"{study}, trial {number}" if number else study)


def verified_view(verified: Verified, named: str) -> RenderableType:
    seen = f"{printable(verified.data)}{', which it was trained on, too' if verified.refit else ''}"
    facts = {
        "version": named,
        "files": f"{verified.files} as registered (manifest {verified.digest[:12]})",
        "network": "rebuilt from its configuration, with its weights",
        "validation": f"{_figures(verified.validation)} of {seen}: exactly as recorded",
        "test": f"{_figures(verified.test)}: exactly as recorded, from the stored predictions",
    }
    return facts_table(facts)


def _figures(figures: Figures) -> str:
    accuracy, images = percent(figures.accuracy), f"{figures.images:,} images"
    return f"accuracy {accuracy}, cross-entropy {figures.cross_entropy:.4f} over {images}"
