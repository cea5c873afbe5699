"""Malformed configurations: `best.yaml` and a run's `config.yaml`."""

from __future__ import annotations

from corpus import Malformed, bomb, link, text, written
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


KEYS = {
    "a seed of five thousand digits": (f"seed: {'9' * 5000}", "seed: "),
    "a seed that is no number": ("seed: .nan", "expected a finite number"),
    "an activation that is Python": (
        "model: {activation: \"__import__('os').abort()\"}",
        "model.activation: ",
    ),
    "rates for other layers than there are": (
        "regularization: {dropout: [0.1, 0.2, 0.3]}",
        "regularization.dropout: expected 1 or 2 values",
    ),
    "a key without meaning": ("training: {optimiser: adam}", 'did you mean "optimizer"'),
    "a data set with an end of line": ('data: {name: "a\\nerror: b.npz"}', "printable characters"),
    "a data set without meaning": ("data: {name: cifar10}", "expected mnist"),
    "a data set of nobody's home": ("data: {name: ~nobody-here/x.npz}", "not found"),
    "a digest of other data": (f"data: {{name: mnist-5k, digest: '{'0' * 64}'}}", "expected the same data"),
    "2,000 keys without meaning": ("\n".join(f"key{n}: 1" for n in range(2000)), "more mistakes"),
    "a sweep file": ("parameters: {dropout: {min: 0, max: 0.5}}\nrun_cap: 5", "this is a sweep file"),
    "a provenance that is a number": ("provenance: 3", "provenance: expected a group of keys"),
    "a provenance of nothing but a trial": ("provenance: {trial: 3}", "provenance.config: missing"),
    "a list": ("- 1", "expected a configuration (try: regtune best STUDY -o best.yaml), found a list"),
    "a bomb of aliases under a key": (bomb() + "seed: *a11", "more than 5000 values"),
    "half a file": (GOOD[: GOOD.index("created") + 4], "not readable YAML"),
    "a trial below nothing": (GOOD.replace("trial: 3", "trial: -3"), "trial: expected at least 0, found -3"),
    "a metric that is SQL": (GOOD.replace("c: val_c", "c: val_x' OR '1'='1"), "provenance.metric: "),
    "figures that are a list": (GOOD.replace("figures:\n", "figures: []\n  more:\n"), "provenance.figures: "),
    "a key of the provenance without meaning": (
        GOOD.replace("  uid:", "  owner: me\n  uid:"),
        "provenance.owner: unknown key",
    ),
}
FILES = [
    Malformed(
        "a file that is not there", lambda: "best.yaml", "no such file; expected a configuration (try: "
    ),
    Malformed("a link to the passwords", lambda: link("best.yaml", "/etc/passwd"), "best.yaml:"),
    Malformed(
        "a model of Keras", lambda: written("model.keras", b"PK\x03\x04" + bytes(200)), "not readable YAML"
    ),
    Malformed(
        "10 MB behind a good file",
        lambda: written("best.yaml", GOOD.encode() + b"#" * 10_000_000),
        "larger than 256 KiB",
    ),
]
CONFIGURATIONS = [
    *(text(what, lines + "\n", said, "best.yaml") for what, (lines, said) in KEYS.items()),
    *FILES,
]
