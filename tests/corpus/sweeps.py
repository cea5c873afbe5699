"""Hostile sweep files: no YAML, YAML that acts, more than a person writes, names that act, and what is no file at all.

Mistakes in the grammar of a sweep are in `mistakes`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from corpus import GOOD, TAGS, Malformed, beside, bomb, encodings, large, nested, text, written

NOT_YAML = {
    "two colons in a line": ("a: b: c", "mapping values are not allowed"),
    "an indentation with a tab": (
        "model:\n\thidden: [8]",
        "bad.yaml:2: not YAML: found character '\\t'",
    ),
    "two documents": ("run_cap: 1\n---\nrun_cap: 2", "bad.yaml:2: not YAML: but found another document"),
    "an alias of nothing": ("seed: *nowhere", "bad.yaml:1: not YAML: found undefined alias 'nowhere'"),
    "an anchor given twice": ("a: &x 1\nb: &x 2\nc: *x", "duplicate anchor"),
    "a terminal's escape": ("name: \x1b[2J", "unacceptable character"),
    "a directive of another YAML": ("%YAML 9.0\n---\nrun_cap: 1", "not YAML"),
    "a key of more than a thousand letters": (f"{'k' * 2000}: 1", "not YAML"),
    "a TOML": ('run_cap = 5\n[parameters]\ndropout = "x"\n', "expected keys"),
    "nothing": ("", "bad.yaml: the file is empty; expected keys such as parameters and run_cap"),
    "a comment only": ("# run_cap: 5\n", "empty"),
    "a word": ("hello\n", 'found "hello"'),
    "a list": ("- run_cap: 5\n", "bad.yaml:1: expected keys such as parameters and run_cap, found a list"),
    "a long text": ("x" * 100_000, "expected keys"),
    "no number": (".nan\n", "expected keys"),
}
TOO_MUCH = {
    "a bomb of aliases": (
        bomb(),
        "more than 5000 values, aliases counted where they are used; expected a sweep file",
    ),
    "an alias of the list that it is in": ("parameters: &a [*a]", "nested deeper"),
    "a group merged into itself": (beside("early_terminate: &x", "  <<: *x"), "nested deeper"),
    "a list in 40 lists": (f"parameters: {nested(40)}", "nested deeper than 32"),
    "groups in 20,000 groups": ("{a: " * 20_000, "nested deeper than 32"),
    "blocks in 500 blocks": ("\n".join(" " * n + "a:" for n in range(500)), "nested deeper than 32"),
    "100,000 empty lists": (f"parameters: [{'[],' * 80_000}]", "more than 5000 values"),
    "20,000 keys without meaning": ("\n".join(f"key{n}: 1" for n in range(20_000)), "more than 5000 values"),
    "2,000 keys without meaning": ("\n".join(f"key{n}: 1" for n in range(2_000)), "more mistakes"),
    "the same key 2,000 times": ("run_cap: 5\n" * 2_000, "given twice"),
    "conditions on 900 values that are none": (
        beside(
            "parameters: {dropout: {min: 0, max: 0.5, when: {batch_size: "
            f"{list(range(1, 900))}}}}}, batch_size: {{values: {list(range(1000, 1900))}}}}}"
        ),
        "batch_size is one of",
    ),
}
HOSTILE = {
    "a configuration": ("regularization: {dropout: [0.2, 0.2]}", "this is a configuration"),
    "a best.yaml": ("provenance: {trial: 3}", "this is a configuration"),
    "a key of 900 letters": (f"{'k' * 900}: 1", "unknown key"),
    "a key with ends of lines": ('"a\\nerror: all is lost\\n": 1', "unknown key"),
    "a key with a terminal's escape": ('"run\\x1b[2J": 1', "unknown key"),
    "a key without meaning": ("methd: tpe", 'did you mean "method"'),
    "a key of Python's own": ("__class__: x", "unknown key"),
    "a parameter that is a path": ("parameters: {../../dropout: {min: 0, max: 0.5}}", "unknown parameter"),
    "an activation that is Python": (
        "model: {activation: \"__import__('os').system('touch canary')\"}",
        "expected one of",
    ),
    "a budget of five thousand digits": (f"run_cap: {'9' * 5000}", "run_cap"),
    "a bound of forty digits": (f"parameters: {{l1: {{min: 0, max: {'9' * 40}}}}}", "parameters.l1.max"),
    "a timeout without end": ("timeout: 1e300", "expected at most"),
    "a description of 20,000 letters": (f"description: {'x' * 20_000}", "at most 10000 letters"),
    "a data set of a long name": (f"dataset: {'d' * 2000}.npz", "at most 1024 letters"),
    "a data set that is a password file": ("dataset: /etc/passwd", "expected mnist"),
    "a data set with a control character": ('dataset: "a\\x1b[2J.npz"', "printable characters"),
    "a data set with a NUL": ('dataset: "a\\0b.npz"', "printable characters"),
    "a data set with half a letter": ('dataset: "a\\ud800.npz"', "dataset"),
}
NAMES = {
    "a name above the folder": "../../etc/passwd",
    "a name that is a flag": "-rf",
    "a name that a shell runs": "$(touch canary)",
    "a name that is SQL": "x' OR '1'='1",
    "a name that is HTML": "<script>alert(1)</script>",
    "a name with an end of line": "a\\nb",
    "a name with a NUL": "a\\0b",
    "a name that turns the direction": "a\\u202egpj",
    "a name with half a letter": "a\\ud800",
    "a name that ends in a blank": "a ",
    "a name of no letters": "",
    "a name of 101 letters": "n" * 101,
}


def _symlink(name: str, target: str) -> str:
    Path(name).symlink_to(target)
    return name


def _folder() -> str:
    Path("folder.yaml").mkdir()
    return "folder.yaml"


def _loop() -> str:
    Path("one.yaml").symlink_to("two.yaml")
    return _symlink("two.yaml", "one.yaml")


def _not_readable() -> str:
    path = Path(written("secret.yaml", GOOD))
    path.chmod(0)
    return str(path) if not os.access(path, os.R_OK) else "/proc/self/mem"  # root reads every file


UNNAMED = "expected up to 100 letters"
FILES = [
    Malformed("a file that is not there", lambda: "absent.yaml", "no such file"),
    Malformed("a file below a file", lambda: f"{written('file', GOOD)}/x.yaml", "cannot be read"),
    Malformed("a folder", _folder, "found a folder"),
    Malformed("a link to itself", _loop, "cannot be read"),
    Malformed("a link to the passwords", lambda: _symlink("link.yaml", "/etc/passwd"), "expected"),
    Malformed("a link to endless zeros", lambda: _symlink("link.yaml", "/dev/zero"), "larger than 256 KiB"),
    Malformed("a file that may not be read", _not_readable, "cannot be read"),
    Malformed("a file whose name has 300 letters", lambda: f"{'f' * 300}.yaml", "cannot be read"),
    Malformed("a file whose name has an end of line", lambda: written("a\nb.yaml", GOOD), UNNAMED),
    Malformed("a file with a terminal's escape", lambda: written("a\x1b[2J.yaml", GOOD), UNNAMED),
    Malformed("a name that is no text", lambda: written(os.fsdecode(b"a\xff.yaml"), GOOD), "a\\udcff.yaml"),
    large("10 MB of zeros", bytes, "larger than 256 KiB"),
    large("10 MB of brackets", lambda size: b"[" * size, "larger than 256 KiB"),
]


def _all() -> Iterator[Malformed]:
    for what, (content, said) in {**NOT_YAML, **TOO_MUCH}.items():
        yield text(what, content, said)
    for what, content in encodings(GOOD).items():
        yield text(f"the encoding: {what}", content, "bad.yaml:")
    for what, tag in TAGS.items():
        yield text(what, beside(f"seed: {tag}"), "not YAML" if "!nowhere!" in tag else "YAML tag")
    for what, (line, said) in HOSTILE.items():
        yield text(what, beside(*line.split("\n")), said)
    for what, name in NAMES.items():
        yield text(what, beside(f'name: "{name}"'), "name: ")
    yield from FILES


SWEEPS = list(_all())
