"""Registered models as tables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import RenderableType

from regtune.cli.terminal import span
from regtune.cli.views.drawing import percent
from regtune.cli.views.tables import table
from regtune.escaping import printable
from regtune.tracking import names

if TYPE_CHECKING:
    from regtune.registry.store import Version


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
