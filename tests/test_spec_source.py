"""The sweep file as text: YAML with lines, and everything that is no sweep file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from regtune.config.source import SWEEP, parse, read
from regtune.config.sweepfile import SweepSpec
from regtune.errors import SpecError


def refusal(path: str | Path) -> str:
    with pytest.raises(SpecError) as refused:
        read(Path(path), SWEEP)
    assert len(refused.value.problems) == 1
    return refused.value.problems[0]


def write(content: str | bytes, name: str = "s.yaml") -> Path:
    path = Path(name)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        *(("1E5", 1e5), ("-2.5e+3", -2500.0), (".5", 0.5), ("1.", 1.0), ("12", 12), ("-12", -12)),
        *(("0x1F", 31), ("0o17", 15), ("010", 10)),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        *((word, word) for word in ("none", "no", "on", "1:30", "1_000", "2024-01-01", "128-64", "1e999")),
        ('"1e-3"', "1e-3"),
        ("'12'", "12"),
        ("9" * 41, float("9" * 41)),
        ("!!float 1e-5", 1e-5),
        ("!!float 1", 1.0),
        ('!!float "2.5"', 2.5),
        ("!!int '5'", 5),
        ("!!bool yes", True),
        ("!!null ''", None),
        ("!!str 1e-5", "1e-5"),
        ("! '5'", "5"),
    ],
)
def test_scalars_are_read_by_yaml_1_2_and_tagged_ones_by_their_tag(text, value):
    found = parse(text, "x").values
    assert (found, type(found)) == (value, type(value))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_that_python_writes_is_read_as_that_number(value):
    assert parse(repr(value), "x").values == value


def test_a_file_of_another_encoding_is_refused_with_the_line_and_the_byte():
    for content, place, byte in (
        ("name: a\ndescription: caf\xe9".encode("latin-1"), "s.yaml:2", "0xe9"),
        ("name: a".encode("utf-16"), "s.yaml:1", "0xff"),
    ):
        assert refusal(write(content)) == f"{place}: expected UTF-8 text, found the byte {byte}"


def test_byte_order_marks_are_no_mistake_nor_are_those_of_files_joined_into_one():
    assert read(write(b"\xef\xbb\xbfrun_cap: 1"), SWEEP).values == {"run_cap": 1}
    found = read(write("# first\n\ufeffname: a\n\ufeff\ufeffrun_cap: 1\n\ufeff# end\n"), SWEEP)
    assert found.values == {"name": "a", "run_cap": 1}
    assert found.places["run_cap",] == "s.yaml:3"


def test_an_alias_may_repeat_a_few_values():
    text = "run_cap: 5\nparameters:\n  l1: &strength {min: 0.0, max: 0.1}\n  l2: *strength\n"
    spec = SweepSpec.load(write(text))
    assert spec.parameters["l1"] == spec.parameters["l2"]


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
    assert "more than 5000 values, aliases counted where they are used" in refusal(write(bomb))
    assert "nested deeper than 32 levels" in refusal(write("a: &a\n  <<: *a\n"))


def problems_of(text: str) -> list[str]:
    with pytest.raises(SpecError) as refused:
        SweepSpec.load(write(text))
    return list(refused.value.problems)


GOOD = "run_cap: 5\nparameters: {dropout: {values: [0, 0.1]}}\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: 1\nseed: 2\n", "s.yaml:2: seed: given twice, on line 1 and on line 2; expected one"),
        (
            "training: {batch_size: 1, batch_size: 2}\n",
            "s.yaml:1: training.batch_size: given twice, on line 1 and on line 1; expected one",
        ),
        (
            "seed: !!python/object/apply:os.system [true]\n",
            "s.yaml:1: seed: the YAML tag 'python/object/apply:os.system' is not read; write the value without it",
        ),
        ("seed: !!int five\n", "s.yaml:1: seed: expected a value of the YAML tag 'int', found \"five\""),
        ("seed: !mine 5\n", "s.yaml:1: seed: the YAML tag '!mine' is not read; write the value without it"),
        ("seed: !!float -.inf\n", "s.yaml:1: seed: expected a finite number, found -.inf"),
        (
            "training: !!set {a}\n",
            "s.yaml:1: training: the YAML tag 'set' is not read; write the value without it",
        ),
        ("seed: .nan\n", "s.yaml:1: seed: expected a finite number, found .nan"),
        ("seed: -.INF\n", "s.yaml:1: seed: expected a finite number, found -.INF"),
        ("? [a, b]\n: 1\n", "s.yaml:1: ?: expected a word as key, found a group of values"),
        ("<<: 1\n", "s.yaml:1: <<: expected a group of keys, or a list of groups"),
        (
            "early_stopping: &e\n  patience: 2\n  patience: 3\n",
            "s.yaml:3: early_stopping.patience: given twice, on line 2 and on line 3; expected one",
        ),
    ],
)
def test_what_yaml_allows_and_a_sweep_does_not_is_refused_with_its_line(text, problem):
    assert problem in problems_of(text + GOOD)
