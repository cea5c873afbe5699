"""The sweep file as text: YAML with lines, and what YAML allows and a sweep does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from corpus import beside
from hypothesis import given
from hypothesis import strategies as st

from regtune.config.source import parse
from regtune.config.sweepfile import SweepSpec
from regtune.errors import SpecError


def refusal(content: str | bytes) -> str:
    Path("s.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(SpecError) as refused:
        SweepSpec.load("s.yaml")
    (problem,) = refused.value.problems
    return problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        *(("1E5", 1e5), ("-2.5e+3", -2500.0), (".5", 0.5), ("1.", 1.0), ("-12", -12)),
        *(("0x1F", 31), ("0o17", 15), ("010", 10)),
        *(("true", True), ("False", False), ("null", None), ("~", None)),
        *((word, word) for word in ("none", "no", "on", "1:30", "1_000", "2024-01-01", "128-64")),
        *(('"1e-3"', "1e-3"), ("'12'", "12"), ("9" * 41, float("9" * 41))),
        *(("!!float 1e-5", 1e-5), ("!!float 1", 1.0), ("!!int '5'", 5), ("!!bool yes", True)),
        *(("!!null ''", None), ("!!str 1e-5", "1e-5")),
    ],
)
def test_scalars_are_read_by_yaml_1_2_and_tagged_ones_by_their_tag(text, value):
    found = parse(text, "x").values
    assert (found, type(found)) == (value, type(value))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_that_python_writes_is_read_as_that_number(value):
    assert parse(repr(value), "x").values == value


def test_a_file_of_another_encoding_is_refused_with_the_line():
    for content, place in (
        ("name: a\nc: caf\xe9".encode("latin-1"), "s.yaml:2"),
        ("a".encode("utf-16"), "s.yaml:1"),
    ):
        assert refusal(content) == f"{place}: expected UTF-8 text"


def test_byte_order_marks_are_no_mistake_nor_are_those_of_files_joined_into_one():
    found = parse("\ufeff# first\n\ufeffname: a\n\ufeff\ufeffrun_cap: 1\n\ufeff# end\n", "s.yaml")
    assert found.values == {"name": "a", "run_cap": 1}
    assert found.places["run_cap",] == "s.yaml:3"


def test_an_alias_may_repeat_a_few_values_and_a_letter_be_written_in_json():
    found = parse('a: &a {min: 0.0}\nb: *a\nc: "\\ud83d\\ude00"\n', "s.yaml")
    assert found.values == {"a": {"min": 0.0}, "b": {"min": 0.0}, "c": "\N{GRINNING FACE}"}


def test_merge_keys_give_what_a_group_has_not_itself_and_the_lines_where_it_stands():
    text = (
        "strength: &strength {min: 1, max: 3}\nlog: &log\n  <<: *strength\n  scale: log\n  min: 2\n"
        "l1:\n  <<: [*log, {max: 4, optional: true}]\n  scale: linear\n'<<': 1\n"
    )
    found = parse(text, "s.yaml")
    assert found.values == {**yaml.safe_load(text), "<<": 1}
    assert found.values["l1"] == {"scale": "linear", "min": 2, "max": 3, "optional": True}
    assert [found.places["l1", key] for key in ("scale", "min", "max", "optional")] == [
        *("s.yaml:8", "s.yaml:5", "s.yaml:1", "s.yaml:7")
    ]
    assert found.problems == []


def test_merges_of_merges_end_where_aliases_do():
    bomb = "a: &a {x: 1}\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)}\n  <<: [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
    )
    for text in (bomb, "a: &a\n  <<: *a\n"):
        assert "more than 5000 values, those of aliases included" in refusal(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: 1\nseed: 2", "s.yaml:2: seed: given twice, first at s.yaml:1; expected one"),
        ("training: {fused: true, fused: false}", "s.yaml:1: training.fused: given twice, first at s.yaml:1"),
        (
            "seed: !!python/object/apply:os.system [true]",
            "s.yaml:1: seed: the YAML tag 'python/object/apply:os.system' is not read; write the value without it",
        ),
        ("seed: !!int five", 's.yaml:1: seed: expected a whole number, found "five"'),
        ("seed: !mine 5", "s.yaml:1: seed: the YAML tag '!mine' is not read"),
        ("training: !!set {}", "s.yaml:1: training: the YAML tag 'set' is not read"),
        ("seed: !!float -.inf", 's.yaml:1: seed: expected a finite number, found "-.inf"'),
        ("seed: .nan", 's.yaml:1: seed: expected a finite number, found ".nan"'),
        ("? [a, b]\n: 1", "s.yaml:1: ?: expected a word as key, found a group of values"),
        ("<<: 1", "s.yaml:1: <<: expected a group of keys, or a list of groups"),
    ],
)
def test_what_yaml_allows_and_a_sweep_does_not_is_refused_with_its_line(text, problem):
    found = refusal(beside(text))
    assert found.startswith(problem)
