"""The model card: what a reader who has never heard of regtune is told, as Markdown that MLflow shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from regtune.config.trial import DataConfig, RegularizationConfig, TrialConfig
from regtune.evidence.export import load_export
from regtune.registry.card import MOST_LETTERS, card_of, description_of
from regtune.registry.version import CARD, DataUsed, Figures, Gate, Opening, Record, Source
from regtune.study.decision_text import optimism_text, sentence

DECISION = load_export(Path(__file__).parents[1] / "benchmarks/study.json").decision
HOSTILE = "<script>alert(1)</script> [x](javascript:alert(1)) | `a` ![b](http://c) **d**\n# e"


def opened(times: int) -> tuple[Opening, ...]:
    return tuple(
        Opening(
            data="c" * 64, at=f"2026-11-2{day}T03:14:15+00:00", study="a" * 32, model="m", config="d" * 64
        )
        for day in range(1, times + 1)
    )


def record(classes: int = 10, **changed: Any) -> Record:
    def figures(accuracy: float, images: int) -> Figures:
        recall = tuple(0.9 + 0.001 * number / classes for number in range(classes))
        return Figures(
            images=images, accuracy=accuracy, cross_entropy=0.0712, ece=0.0042, brier=0.0315, recall=recall
        )

    assert DECISION is not None
    config = TrialConfig(
        regularization=RegularizationConfig(dropout=(0.2,)), data=DataConfig(name="mnist", digest="c" * 64)
    )
    given: dict[str, Any] = {
        "name": "digits",
        "source": Source(
            study="mnist-regularization", uid="a" * 32, trial=4, chosen="decision", metric=DECISION.metric
        ),
        "config": config,
        "fingerprint": config.digest,
        "data": DataUsed(
            **{"name": "mnist", "digest": "c" * 64, "split_seed": 42, "features": 784, "classes": classes},
            **{"train": 48_000, "validation": 12_000, "test": 10_000},
        ),
        "refit": False,
        "epochs": 10,
        "kept_epoch": 6,
        "techniques": 2,
        "entries": 108_213,
        "validation": figures(0.9803, 12_000),
        "test": figures(0.9789, 10_000),
        "accuracy_low": 0.9759,
        "accuracy_high": 0.9815,
        "champion": "digits 1",
        "gates": (
            Gate(
                name="shift", figure="0.9571", limit="at least 0.75", passed=True, note="moved by one pixel"
            ),
            Gate(name="champion", figure="−0.0010", limit="better", passed=False, note="tied, not simpler"),
        ),
        "openings": opened(1),
        "decision": DECISION.model_dump(mode="json"),
        "bytes": 468_000,
        "seconds_a_digit": 0.003,
        "versions": {"keras": "3.15.1"},
        "created": "2026-11-29T03:00:00+00:00",
        **changed,
    }
    return Record(**given)


def text_of(markdown: str) -> str:
    """What a page of it shows."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    inline = (child for token in tokens for child in [token, *(token.children or ())])
    return " ".join(one.content for one in inline if one.type in ("text", "code_inline", "fence"))


def test_a_card_says_what_it_is_how_good_and_what_it_was_compared_with() -> None:
    assert DECISION is not None
    shown = text_of(card_of(record()))
    for said in (
        *("0.9789", "95 % interval 0.9759 to 0.9815", "uint8", "(n, 28, 28)", "0.9571", "at least 0.75"),
        *("mlflow.keras.load_model(", "mlflow.pyfunc.load_model(", "models:/digits@champion"),
        *(sentence(DECISION), optimism_text(DECISION), "c" * 64, "Dark ink", "digits 1", "keras 3.15.1"),
        "This study has opened the test set once, this time included.",
    ):
        assert said in shown, said
    assert "had been opened" not in shown


def test_a_card_is_rendered_as_tables_and_holds_no_html() -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(card_of(record()))
    kinds = {token.type for token in tokens} | {
        child.type for token in tokens for child in token.children or ()
    }
    assert kinds >= {"table_open", "fence", "heading_open"}
    assert kinds.isdisjoint({"html_block", "html_inline", "image", "link_open"})
    rows = sum(token.type == "tr_open" for token in tokens)
    cells = [token for token in tokens if token.type in ("td_open", "th_open")]
    assert rows > 30, cells


def test_what_a_reader_must_not_miss_stands_at_the_top() -> None:
    made = record(openings=opened(3), forced="the old one is *worse*")
    top = text_of(card_of(made).partition("## How to load")[0])
    assert "The test set had been opened 2 times before." in top
    assert "Registered by force against: champion." in top
    assert "the old one is *worse*" in top
    table = text_of(card_of(made).partition("## Openings")[2])
    assert all(f"2026-11-2{day} 03:14 UTC" in table for day in (1, 2, 3))


def test_a_version_without_a_decision_says_that_its_trial_was_one_lucky_run() -> None:
    source = Source(study="s", uid="0", trial=7, chosen="search", metric="val_accuracy")
    shown = text_of(card_of(record(source=source, decision=None)))
    assert "trial 7" in shown
    assert "the best single run of a search, which is partly luck" in shown
    assert "Nothing was trained again" in shown


def test_foreign_text_stays_text_and_a_path_keeps_its_folders_to_itself() -> None:
    source = Source(study=HOSTILE, uid="0", chosen="person", metric="val_accuracy", sentence=HOSTILE)
    gate = Gate(name="digests", figure="1 | 2", limit="all", passed=False, note=HOSTILE)
    data = record().data.model_copy(update={"name": "/srv/secret/folder/own.npz"})
    card = card_of(
        record(source=source, decision=None, forced=HOSTILE, gates=(gate,), data=data, name=HOSTILE)
    )
    plain = MarkdownIt("commonmark").enable("table")
    before = {one.type for one in plain.parse(card_of(record()))}
    assert {one.type for one in plain.parse(card)} <= before
    children = {child.type for token in plain.parse(card) for child in token.children or ()}
    assert children.isdisjoint({"html_inline", "image", "link_open"})
    assert "<script>alert(1)</script>" in text_of(card)
    assert "own.npz" in card
    assert "secret" not in card
    assert "Dark ink" not in card


@pytest.mark.parametrize("changed", [{}, {"classes": 300}, {"forced": "because " * 2000}])
def test_a_description_fits_into_mlflows_column_and_names_the_whole_card(changed: dict[str, Any]) -> None:
    made = record(**changed)
    assert len(card_of(made)) > MOST_LETTERS or not changed
    text = description_of(made)
    assert len(text) <= MOST_LETTERS
    assert text.startswith("A neural network that tells"), "MLflow shows the first line in its lists"
    assert ("## How to load it" in text) or changed.get("forced")
    if len(card_of(made)) > MOST_LETTERS:
        assert f"`{CARD}`" in text.splitlines()[-1]
