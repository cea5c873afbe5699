"""Malformed configurations: `best.yaml` and a run's `config.yaml`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from corpus import TAGS, Malformed, bomb, encodings, large, nested, text, written
from regtune.config.trial import METRICS, DataConfig, TrialConfig
from regtune.study.best import Best, Provenance

CONFIG = TrialConfig(data=DataConfig(name="mnist-5k"))
BEST = Best(
    CONFIG,
    Provenance(
        config=CONFIG.digest,
        study="mnist-regularization",
        uid="0" * 32,
        trial=3,
        trial_uid="1" * 32,
        metric="val_cross_entropy",
        value=0.25,
        val_accuracy=0.5,
        epoch=4,
        epochs=8,
        figures=dict.fromkeys(METRICS, 0.25),
        versions={"keras": "3.15.0"},
        created="2026-01-01T00:00:00+00:00",
    ),
)
GOOD = BEST.to_yaml()


def without(key: str) -> str:
    """The good file without the lines of a key of its top."""
    lines = GOOD.splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith(f"{key}:"))
    end = next((n for n in range(begin + 1, len(lines)) if not lines[n].startswith(" ")), len(lines))
    return "\n".join(lines[:begin] + lines[end:]) + "\n"


def with_line(old: str, new: str) -> str:
    """The good file with another text in place of one."""
    assert GOOD.count(old) >= 1, old
    return GOOD.replace(old, new, 1)


KEYS = {
    "a seed below nothing": ("seed: -1", "seed: "),
    "a seed in words": ("seed: lucky", "seed: "),
    "a seed that is a list": ("seed: [1]", "seed: "),
    "a seed of five thousand digits": (f"seed: {'9' * 5000}", "seed: "),
    "a seed that is no number": ("seed: .nan", "expected a finite number"),
    "a model that is a list": ("model: [8]", "model: "),
    "a model without layers": ("model: {hidden: []}", "model.hidden: "),
    "a layer of no width": ("model: {hidden: [0]}", "model.hidden.0: "),
    "a layer that is too wide": ("model: {hidden: [1000000]}", "model.hidden.0: "),
    "more layers than there may be": (f"model: {{hidden: {[8] * 9}}}", "model.hidden: "),
    "an activation that is Python": (
        "model: {activation: \"__import__('os').abort()\"}",
        "model.activation: ",
    ),
    "a rate above its limit": ("regularization: {dropout: 1.5}", "regularization.dropout.0: "),
    "a rate that is infinite": ("regularization: {dropout: .inf}", "expected a finite number"),
    "a rate in words": ("regularization: {dropout: half}", "regularization.dropout.0: "),
    "rates for other layers than there are": (
        "regularization: {dropout: [0.1, 0.2, 0.3]}",
        "expected 1 or 2 values",
    ),
    "a placement without meaning": ("regularization: {batchnorm: before}", "regularization.batchnorm.0: "),
    "an optimizer without meaning": ("training: {optimizer: lion}", "training.optimizer: "),
    "a learning rate that is infinite": ("training: {learning_rate: .inf}", "expected a finite number"),
    "a batch of nothing": ("training: {batch_size: 0}", "training.batch_size: "),
    "a key without meaning": ("training: {optimiser: adam}", 'did you mean "optimizer"'),
    "a monitor without meaning": ("early_stopping: {monitor: val_acc}", "early_stopping.monitor: "),
    "a data set that is a list": ("data: {name: [mnist]}", "data.name: "),
    "a data set with an end of line": ('data: {name: "a\\nerror: b.npz"}', "printable characters"),
    "a data set with a NUL": ('data: {name: "a\\0.npz"}', "printable characters"),
    "a data set without meaning": ("data: {name: cifar10}", "expected mnist"),
    "a data set that is the passwords": ("data: {name: /etc/passwd}", "expected mnist"),
    "a data set above the folder": ("data: {name: ../../../etc/shadow}", "expected mnist"),
    "a data set that is not there": ("data: {name: absent.npz}", "not found"),
    "a data set of nobody's home": ("data: {name: ~nobody-here/x.npz}", "not found"),
    "a data set of a name too long for a file": (f"data: {{name: {'n' * 300}.npz}}", "cannot be looked for"),
    "a split that leaves nothing": ("data: {name: mnist-5k, validation: 1.0}", "data.validation: "),
    "a digest that is none": ("data: {digest: 51AB}", "data.digest: "),
    "a digest of other data": (f"data: {{name: mnist-5k, digest: '{'0' * 64}'}}", "expected the same data"),
    "a key given twice": ("seed: 1\nseed: 2", "given twice"),
    "a key of a group given twice": ("training: {batch_size: 1, batch_size: 2}", "given twice"),
    "a merge key that merges a number": ("<<: 1", "<<: expected a group of keys"),
    "a list as a key": ("? [a]\n: 1", "expected a word as key"),
    "a key with a terminal's escape": ('"a\\x1b[2J": 1', "unknown key"),
    "a key with an end of line": ('"a\\nerror: b": 1', "unknown key"),
    "a key of 900 letters": (f"{'k' * 900}: 1", "unknown key"),
    "2,000 keys without meaning": ("\n".join(f"key{n}: 1" for n in range(2000)), "more mistakes"),
    "a sweep file": ("parameters: {dropout: {min: 0, max: 0.5}}\nrun_cap: 5", "this is a sweep file"),
    "a provenance that is a number": ("provenance: 3", "provenance: "),
    "a provenance of nothing but a trial": ("provenance: {trial: 3}", "provenance.config: "),
}
PROVENANCE = {
    "a trial below nothing": ("trial: 3", "trial: -3", "provenance.trial: "),
    "an epoch of nothing": ("epoch: 4", "epoch: 0", "provenance.epoch: "),
    "a metric that is SQL": (
        "metric: val_cross_entropy",
        "metric: \"val_x' OR '1'='1\"",
        "provenance.metric: ",
    ),
    "a figure that is no number": ("accuracy: 0.25", "accuracy: .nan", "expected a finite number"),
    "a figure in words": ("accuracy: 0.25", "accuracy: good", "provenance.figures.accuracy: "),
    "figures that are a list": ("figures:\n", "figures: []\n  more:\n", "provenance.figures: "),
    "a study of no name": ("study: mnist-regularization", 'study: ""', "provenance.study: "),
    "a study that is a number": ("study: mnist-regularization", "study: 5", "provenance.study: "),
    "a key of the provenance without meaning": (
        "  uid:",
        "  owner: me\n  uid:",
        "provenance.owner: unknown key",
    ),
    "a digest of the configuration that is none": (
        f"config: {CONFIG.digest}",
        "config: abc",
        "provenance.config: ",
    ),
    "a digest of the configuration that is a number": (
        f"config: {CONFIG.digest}",
        "config: 1e5",
        "provenance.config: ",
    ),
}


def _link(target: str) -> str:
    Path("best.yaml").symlink_to(target)
    return "best.yaml"


def _folder() -> str:
    Path("best.yaml").mkdir()
    return "best.yaml"


FILES = [
    Malformed(
        "a file that is not there", lambda: "best.yaml", "no such file; try: regtune best STUDY -o best.yaml"
    ),
    Malformed("a folder", _folder, "found a folder"),
    Malformed("a link to itself", lambda: _link("best.yaml"), "cannot be read"),
    Malformed("a link to endless zeros", lambda: _link("/dev/zero"), "larger than 256 KiB"),
    Malformed("a link to the passwords", lambda: _link("/etc/passwd"), "best.yaml:"),
    Malformed("a file whose name has 300 letters", lambda: f"{'f' * 300}.yaml", "cannot be read"),
    Malformed("a model of Keras", lambda: written("model.keras", b"PK\x03\x04" + bytes(200)), "not YAML"),
    large("10 MB of comments", lambda size: b"# x\n" * (size // 4), "larger than 256 KiB", "best.yaml"),
    large(
        "10 MB behind a good file",
        lambda size: GOOD.encode() + b"#" * size,
        "larger than 256 KiB",
        "best.yaml",
    ),
]


def _all() -> Iterator[Malformed]:
    def best(what: str, content: str | bytes, said: str) -> Malformed:
        return text(what, content, said, "best.yaml")

    for what, (lines, said) in KEYS.items():
        yield best(what, lines + "\n", said)
    for what, (old, new, said) in PROVENANCE.items():
        yield best(what, with_line(old, new), said)
    for what, tag in TAGS.items():
        said = "not YAML" if "!nowhere!" in tag else "YAML tag"
        yield best(what, f"seed: {tag}\n", said)
        yield best(f"{what}, in the provenance", with_line("trial: 3", f"trial: {tag}"), said)
    for what, content in encodings(GOOD).items():
        yield best(f"the encoding: {what}", content, "best.yaml:")
    yield best("nothing", "", "empty")
    yield best("a list", "- 1\n", "expected a configuration")
    yield best("half a file", GOOD[: GOOD.index("created") + 4], "not YAML")
    yield best("a bomb of aliases", bomb(), "more than 5000 values")
    yield best("a bomb of aliases under a key", bomb() + "seed: *a11\n", "more than 5000 values")
    yield best("an alias of the list that it is in", "model: &a [*a]\n", "nested deeper")
    yield best("a list in 100,000 lists", nested(100_000), "nested deeper")
    yield best("100,000 values", f"model: {{hidden: [{'1,' * 100_000}]}}\n", "more than 5000 values")
    yield from FILES


CONFIGURATIONS = list(_all())
