"""The model card of a version, as Markdown: its description in MLflow, and `card.md` among its artifacts.

Written for somebody who meets the model in MLflow and has never heard of regtune (Mitchell et al., Model cards for
model reporting, FAT* 2019): what it is, how to load it, how good it is, where it comes from and what it was compared
with, its gates, how often its test set had been opened, and what it is not for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePath

from regtune.escaping import code, markdown, printable, shell_word
from regtune.registry.version import CARD, CONFIG, Record
from regtune.study.decision import Decision, Judged, read_stored
from regtune.study.decision_text import (
    NO_TECHNIQUE,
    basis_text,
    end_text,
    optimism_text,
    sentence,
    signed_text,
    value_text,
    words,
)

MOST_LETTERS = 5000
"""Of a description: MLflow's column has no room for more, and PostgreSQL refuses it."""
MOST_ROWS = 6
"""Candidates and openings that are shown, each."""
LEAST_URGENT = ("versions", "training", "compared", "data", "classes", "openings", "gates")
"""Sections that a description without room leaves out, in this order."""
REST = f"\n\nThe whole card is among the artifacts: `{CARD}`."
DIGITS = ("mnist", "mnist-5k")
WENT = {True: "passed", False: "**refused**", None: "not asked"}
HOW = {
    "decision": "chosen by replicates",
    "search": "the best single run of a search, which is partly luck",
    "person": "chosen by a person",
}


def card_of(record: Record) -> str:
    """The whole card."""
    return "\n\n".join(_sections(record).values()) + "\n"


def description_of(record: Record) -> str:
    """The card in the letters that MLflow has room for; what does not fit is left to the artifact.

    Without its heading: MLflow shows the first line in lists, and the model's name above.
    """
    sections, room = _sections(record), MOST_LETTERS - len(REST)
    sections["what"] = sections["what"].partition("\n\n")[2]
    text = "\n\n".join(sections.values())
    if len(text) <= room:
        return text
    for least in LEAST_URGENT:
        sections.pop(least, None)
        text = "\n\n".join(sections.values())
        if len(text) <= room:
            break
    return text[:room] + REST


def _sections(record: Record) -> dict[str, str]:
    decision = read_stored(record.decision)
    sections = {
        "what": _what(record),
        "load": _load(record),
        "figures": _figures(record),
        "evidence": _evidence(record, decision),
        "compared": _compared(decision) if decision else "",
        "gates": _gates(record),
        "openings": _openings(record),
        "limits": _limits(record),
        "classes": _classes(record),
        "data": _data(record),
        "training": _training(record),
        "versions": _versions(record),
    }
    return {name: text for name, text in sections.items() if text}


def _what(record: Record) -> str:
    """The first lines: what it is and how good, in two sentences; what a reader must not miss after them."""
    data, test = record.data, record.test
    layers = " and ".join(map(str, record.config.model.hidden))
    interval = f"95 % interval {record.accuracy_low:.4f} to {record.accuracy_high:.4f}"
    lines = [
        f"# {markdown(record.name)}",
        f"A neural network that tells the {data.classes} classes of {_shown(_data_name(record))} apart in grey images "
        f"of 28 × 28 pixels: {len(record.config.model.hidden)} hidden layers of {layers} units, regularized with "
        f"{_shown(_mix(record))}. **Accuracy on {test.images:,} test images: {test.accuracy:.4f}** ({interval}).",
    ]
    if record.forced is not None:
        refused = ", ".join(gate.name for gate in record.gates if gate.passed is False)
        against = f" against: {refused}" if refused else ""
        lines.append(f"**Registered by force{against}.** The reason given: {_shown(record.forced)}")
    if len(record.openings) > 1:
        lines.append(
            f"**The test set had been opened {_times(len(record.openings) - 1)} before.** Whoever chooses by repeated "
            "looks at one test set finds models that are good on it by luck: expect a little less than its figures."
        )
    return "\n\n".join(lines)


def _load(record: Record) -> str:
    uri = json.dumps(f"models:/{record.name}@champion", ensure_ascii=False)
    example = f"""\
import mlflow

model = mlflow.keras.load_model({uri})    # a keras.Model
probabilities = model.predict(images)

model = mlflow.pyfunc.load_model({uri})   # the same without Keras' names
probabilities = model.predict(images)
predicted = probabilities.argmax(axis=1)"""
    rows = [
        (
            "input",
            "uint8",
            "(n, 28, 28)",
            "grey levels, 0 for the background to 255, as the data set has them; not scaled",
        ),
        ("output", "float32", f"(n, {record.data.classes})", "a probability for each class"),
    ]
    return f"""\
## How to load it

```python
{example}
```

{_table(("", "type", "shape", "meaning"), rows)}

Pixels scaled to 0 to 1 look black to it, and are answered wrongly. `pyfunc` refuses them, as it does other types and \
shapes; Keras does not, nor does `mlflow models serve` in JSON.

`@champion` is the version in use; another one has its number: {code(f"models:/{record.name}/1")}. With regtune: \
{code(f"regtune pull {shell_word(record.name)} -o model")}, which checks every file."""


def _figures(record: Record) -> str:
    def row(name: str, of: str, form: str = "{:.4f}") -> tuple[str, ...]:
        return name, *(form.format(getattr(part, of)) for part in (record.validation, record.test))

    what = "validation images" + (", trained on as well" if record.refit else "")
    rows = [
        row("images", "images", "{:,}"),
        row("accuracy", "accuracy"),
        row("cross-entropy (nats)", "cross_entropy"),
        row("calibration error (ECE)", "ece"),
        row("Brier score", "brier"),
    ]
    size = f"{record.bytes / 1e6:.3g} MB on disk; {1000 * record.seconds_a_digit:.2g} ms for one image through Keras."
    return f"## Figures\n\n{_table(('', what, 'test images'), rows)}\n\n{size}"


def _evidence(record: Record, decision: Decision | None) -> str:
    source = record.source
    trial = "" if source.trial is None else f", trial {source.trial}"
    how = HOW[source.chosen]
    lines = [f"From the study {code(source.study)}{trial} ({code(source.uid)}): {how}."]
    if decision:
        said = sentence(decision), optimism_text(decision), basis_text(decision), end_text(decision)
        lines += [f"**{markdown(said[0])}**", markdown(" ".join(filter(None, said[1:])))]
    elif source.sentence:
        lines.append(markdown(source.sentence))
    if decision is None:
        lines.append("Nothing was trained again to tell it from other configurations.")
    return "\n\n".join(("## Where it comes from", *lines))


def _compared(decision: Decision) -> str:
    """The candidates that a reader asks for: the chosen one, no technique, those that are as good."""
    chosen, none = decision.judged(decision.chosen), decision.none
    shown: dict[str, Judged] = {one.candidate.key: one for one in (chosen, none) if one}
    shown |= {one.candidate.key: one for one in decision.with_standing("tied", "beaten", "diverged")}
    rows = [
        (
            _shown(words(one.candidate)),
            value_text(decision.metric, one.estimate),
            signed_text(decision.metric, one.to_none),
            value_text("val_accuracy", one.figures.get("val_accuracy")),
            f"{one.standing}",
            f"{one.replicates}",
        )
        for one in list(shown.values())[:MOST_ROWS]
    ]
    if not rows:
        return ""
    metric = markdown(decision.metric)
    head = "compared", metric, f"minus {NO_TECHNIQUE}", "validation accuracy", "standing", "trainings"
    more = len(shown) - len(rows)
    return _table(head, rows) + (f"\n\nAnd {more} more." if more > 0 else "")


def _gates(record: Record) -> str:
    if not record.gates:
        return ""
    against = (
        f"The champion then: {code(record.champion)}." if record.champion else "There was no champion before."
    )
    rows = [
        (gate.name, _cell(gate.figure), _cell(gate.limit), WENT[gate.passed], _cell(gate.note))
        for gate in record.gates
    ]
    return f"## Gates\n\n{against}\n\n{_table(('gate', 'figure', 'limit', '', 'of what'), rows)}"


def _openings(record: Record) -> str:
    count = len(record.openings)
    lead = f"This study has opened the test set {_times(count)}, this time included."
    rows = [(_time(one.at), code(one.model), code(one.config[:12])) for one in record.openings[-MOST_ROWS:]]
    return f"## Openings of the test set\n\n{lead}\n\n{_table(('when', 'model', 'configuration'), rows)}"


def _limits(record: Record) -> str:
    name = _shown(_data_name(record))
    lines = [
        f"It answers every image with one of its {record.data.classes} classes, whatever the image shows; its "
        f"probabilities mean something for images like those of {name} alone.",
        "Its figures hold for such images. Measure it on yours before you rely on it.",
        "Where a wrong answer costs somebody something, let a person look at answers with a low probability.",
    ]
    if record.data.name in DIGITS:
        lines.insert(
            1,
            "It reads single handwritten digits, white on black, centred and of the size that MNIST's have. Dark ink "
            "on white paper, several digits, letters and digits off the centre it answers wrongly, without an error.",
        )
    return "## What it is not for\n\n" + "\n".join(f"- {line}" for line in lines)


def _classes(record: Record) -> str:
    rows = [
        (f"{number}", *(f"{recall:.4f}" for recall in pair))
        for number, pair in enumerate(zip(record.validation.recall, record.test.recall, strict=True))
    ]
    lead = "The share of a class's images that it recognizes (recall)."
    return f"## Class by class\n\n{lead}\n\n{_table(('class', 'validation', 'test'), rows)}"


def _data(record: Record) -> str:
    data = record.data
    trained = data.train + (data.validation if record.refit else 0)
    rows = [
        ("data set", _shown(_data_name(record))),
        ("SHA-256 of all its images and labels", code(data.digest)),
        ("images trained on", f"{trained:,}" + (", validation images included" if record.refit else "")),
        ("validation images", f"{data.validation:,}, drawn with seed {data.split_seed}"),
        ("test images", f"{data.test:,}"),
    ]
    return f"## Data\n\n{_table(('', ''), rows)}"


def _training(record: Record) -> str:
    config = record.config
    training = config.training
    stopping = config.early_stopping
    early = "none" if stopping is None else f"{stopping.monitor}, patience {stopping.patience}"
    rows = [
        ("regularization", _shown(_mix(record))),
        ("techniques in use, early stopping among them", f"{record.techniques}"),
        ("entries of the hidden layers that are not absent", f"{record.entries:,}"),
        (
            "optimizer",
            f"{training.optimizer}, learning rate {training.learning_rate:g}, batches of {training.batch_size}",
        ),
        ("early stopping", early),
        ("epochs trained, epoch kept", f"{record.epochs}, {record.kept_epoch}"),
        ("seed", f"{config.seed}"),
        ("configuration", code(record.fingerprint)),
    ]
    return f"## Training\n\n{_table(('', ''), rows)}\n\nAll of it: `{CONFIG}`, among the artifacts."


def _versions(record: Record) -> str:
    made = ", ".join(f"{printable(name)} {printable(version)}" for name, version in record.versions.items())
    return f"Made {_time(record.created)} with {markdown(made)}." if made else ""


def _mix(record: Record) -> str:
    mix = record.config.mix
    if record.config.early_stopping is None:
        return NO_TECHNIQUE if mix == "none" else mix
    return "early stopping alone" if mix == "none" else f"{mix} and early stopping"


def _data_name(record: Record) -> str:
    """The data set's name; of a file its own name, not where it lies on some machine."""
    return PurePath(record.data.name.replace("\\", "/")).name


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _shown(text: str) -> str:
    return markdown(printable(text))


def _cell(text: str) -> str:
    """Text for a table, where a number begins no list."""
    return _shown(f"- {text}").partition(" ")[2]


def _time(stamp: str) -> str:
    """``2026-11-29 03:00 UTC``, of ISO 8601 in UTC."""
    return f"{stamp[:16].replace('T', ' ')} UTC"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns MLflow's page sets apart, which has no padding for them."""
    between = "\N{NO-BREAK SPACE}\N{NO-BREAK SPACE} | "
    head_line, *lines = (between.join(cells) for cells in (head, *rows))
    return "\n".join(f"| {line} |" for line in (head_line, " | ".join(["---"] * len(head)), *lines))
