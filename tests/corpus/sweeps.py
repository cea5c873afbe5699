"""Hostile sweep files: no YAML, YAML that acts, more than a person writes, names that act, and what is no file at all.

Mistakes in the grammar of a sweep are in `mistakes.txt`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from corpus import CANARY, GOOD, Malformed, beside, bomb, link, text, written

NOT_YAML = {
    "two colons in a line": ("a: b: c", "mapping values are not allowed"),
    "an indentation with a tab": ("model:\n\thidden: [8]", "bad.yaml:2: not readable YAML: while scanning"),
    "two documents": ("run_cap: 1\n---\nrun_cap: 2", "but found another document"),
    "an alias of nothing": (
        "seed: *nowhere",
        "bad.yaml:1: not readable YAML: found undefined alias 'nowhere'",
    ),
    "an anchor given twice": ("a: &x 1\nb: &x 2\nc: *x", "duplicate anchor"),
    "a terminal's escape": ("name: \x1b[2J", "unacceptable character"),
    "a tag without its handle": ("seed: !nowhere!x 1", "undefined tag handle"),
    "a TOML": ('run_cap = 5\n[parameters]\ndropout = "x"\n', "bad.yaml:1: expected a sweep file"),
    "a comment only": (
        "# run_cap: 5\n",
        "expected a sweep file (keys such as parameters and run_cap), found nothing",
    ),
    "a list": ("- run_cap: 5\n", "found a list"),
    "no number": (".nan\n", "expected a sweep file"),
}
TOO_MUCH = {
    "a bomb of aliases": (bomb(), "more than 5000 values, those of aliases included"),
    "an alias of the list that it is in": ("parameters: &a [*a]", "those of aliases included"),
    "groups in 20,000 groups": (
        "{a: " * 20_000,
        "more than 5000 values, those of aliases included, or than 32",
    ),
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
ENCODINGS = {
    "UTF-16 without its mark": GOOD.encode("utf-16-le"),
    "Latin-1 with an accent": f"# caf\xe9\n{GOOD}".encode("latin-1"),
    "a surrogate written as UTF-8": b"# \xed\xa0\x80\n" + GOOD.encode(),
    "a letter that is cut in two": GOOD.encode() + "# \u00e9".encode()[:-1],
    "a gzip": b"\x1f\x8b\x08" + bytes(64),
}
TAGS = {
    "a tag that calls os.system": f"!!python/object/apply:os.system ['touch {CANARY}']",
    "a tag of one's own": "!include secrets.yaml",
    "a tag by its whole address": "!<tag:evil.example,2026:run> x",
    "a tag that is base64": "!!binary aGVsbG8=",
}
HOSTILE = {
    "a configuration": ("regularization: {dropout: [0.2, 0.2]}", "this is a configuration"),
    "a key of 900 letters": (f"{'k' * 900}: 1", "unknown key"),
    "a key with ends of lines": ('"a\\nerror: all is lost\\n": 1', "unknown key"),
    "a key without meaning": ("methd: tpe", 'did you mean "method"'),
    "an activation that is Python": (
        "model: {activation: \"__import__('os').system('touch canary')\"}",
        "model.activation: expected 'relu'",
    ),
    "a budget of five thousand digits": (f"run_cap: {'9' * 5000}", "run_cap"),
    "a data set that is a password file": ("dataset: /etc/passwd", "expected mnist"),
    "a data set with a control character": ('dataset: "a\\x1b[2J.npz"', "printable characters"),
    "a data set with half a letter": ('dataset: "a\\ud800.npz"', "dataset"),
}
NAMES = {
    "a name above the folder": "../../etc/passwd",
    "a name that is a flag": "-rf",
    "a name that a shell runs": "$(touch canary)",
    "a name with an end of line": "a\\nb",
    "a name that ends in one": "a\\n",
    "a name that turns the direction": "a\\u202egpj",
    "a name with half a letter": "a\\ud800",
    "a name of no letters": "",
    "a name of 101 letters": "n" * 101,
}


def _loop() -> str:
    link("one.yaml", "two.yaml")
    return link("two.yaml", "one.yaml")


def _not_readable() -> str:
    path = Path(written("secret.yaml", GOOD))
    path.chmod(0)
    return str(path) if not os.access(path, os.R_OK) else "/proc/self/mem"  # root reads every file


UNNAMED = "expected up to 100 letters"
FILES = [
    Malformed("a file that is not there", lambda: "absent.yaml", "no such file"),
    Malformed("a folder", lambda: ".", "cannot be read (Is a directory)"),
    Malformed("a link to itself", _loop, "cannot be read"),
    Malformed("a link to the passwords", lambda: link("link.yaml", "/etc/passwd"), "expected"),
    Malformed("a link to endless zeros", lambda: link("link.yaml", "/dev/zero"), "larger than 256 KiB"),
    Malformed("a file that may not be read", _not_readable, "cannot be read"),
    Malformed("a file whose name has 300 letters", lambda: f"{'f' * 300}.yaml", "cannot be read"),
    Malformed("a file whose name has an end of line", lambda: written("a\nb.yaml", GOOD), UNNAMED),
    Malformed("a name that is no text", lambda: written(os.fsdecode(b"a\xff.yaml"), GOOD), "a\\udcff.yaml"),
    Malformed("10 MB of brackets", lambda: written("bad.yaml", b"[" * 10_000_000), "larger than 256 KiB"),
]


def _all() -> Iterator[Malformed]:
    for what, (content, said) in {**NOT_YAML, **TOO_MUCH}.items():
        yield text(what, content, said)
    for what, encoded in ENCODINGS.items():
        yield text(f"the encoding: {what}", encoded, "bad.yaml:")
    for what, tag in TAGS.items():
        yield text(what, beside(f"seed: {tag}"), "YAML tag")
    for what, (line, said) in HOSTILE.items():
        yield text(what, beside(line), said)
    for what, name in NAMES.items():
        yield text(what, beside(f'name: "{name}"'), "name: ")
    yield from FILES


SWEEPS = list(_all())
