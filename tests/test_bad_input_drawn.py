"""Files that hypothesis draws: values, bytes, and good files with something changed.

Each is read, or refused with exit code 2 in words that stay readable; no other exception ever comes out.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from corpus import configurations, datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from specs import SWEEPS

from regtune.config.source import MAX_MESSAGE, MAX_PROBLEMS
from regtune.config.sweepfile import SweepSpec
from regtune.config.sweepfile.parameters import TARGETS
from regtune.config.trial import KEYS
from regtune.data.datasets import load_arrays
from regtune.errors import InputError
from regtune.study.best import load_best

FEW = settings(
    max_examples=30,
    derandomize="CI" in os.environ,  # what is drawn anew each time is for those who can look into it
)

ODD = [
    10**40,
    10**400,
    -(2**63),
    1e308,
    5e-324,
    "1e5",
    "no",
    "~",
    "../..",
    "a\nb",
    "\x1b[2J",
    "mnist-5k",
    "uniform",
]
FORMS = ["value", "values", "distribution", "min", "max", "q", "optional", "per_layer", "when"]
ordinary = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
words = st.sampled_from([*KEYS.homes, *SweepSpec.model_fields, *FORMS]) | st.text(max_size=8)
values = st.recursive(
    ordinary | st.sampled_from(ODD),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=5)),
    max_leaves=25,
)
parameters = st.dictionaries(
    st.sampled_from(sorted(TARGETS)),
    st.dictionaries(st.sampled_from(FORMS), values, max_size=4) | values,
    max_size=3,
)


def read_or_refused(read: Callable[[Path], Any], content: bytes, name: str = "drawn.yaml") -> Any:
    """What was read, or None after a readable refusal."""
    path = Path(name)
    path.write_bytes(content)
    try:
        return read(path)
    except InputError as error:
        refusal = error
    lines = str(refusal).splitlines()
    assert refusal.exit_code == 2
    assert 0 < len(lines) <= MAX_PROBLEMS + 1
    assert len(set(lines)) == len(lines)
    assert all(line.isprintable() and len(line) < 2 * MAX_MESSAGE for line in lines)
    return None


def sweep_or_refused(content: bytes) -> None:
    spec = read_or_refused(SweepSpec.load, content)
    assert spec is None or SweepSpec.from_dict(spec.to_dict()) == spec
    assert spec is None or all(warning.isprintable() for warning in spec.warnings)


def best_or_refused(content: bytes) -> None:
    best = read_or_refused(load_best, content)
    assert best is None or read_or_refused(load_best, best.to_yaml().encode()) == best


def data_or_refused(content: bytes) -> None:
    load_arrays.cache_clear()
    read_or_refused(lambda path: load_arrays(str(path)), content, "drawn.npz")


def yaml_of(found: Any) -> bytes:
    return yaml.safe_dump(found, allow_unicode=True).encode("utf-8", "surrogatepass")


# -- anything at all


@FEW
@given(values)
def test_any_values_are_a_configuration_or_are_refused(found: Any) -> None:
    best_or_refused(json.dumps(found).encode())
    best_or_refused(yaml_of({"provenance": found}))
    best_or_refused(yaml_of({"regularization": found, "training": found, "data": found}))


@settings(FEW, max_examples=200)
@given(st.dictionaries(st.sampled_from(list(SweepSpec.model_fields)), values, max_size=4), parameters)
def test_any_values_of_its_keys_are_a_sweep_or_are_refused(keys: dict[str, Any], searched: Any) -> None:
    sweep_or_refused(yaml_of({"run_cap": 9, "parameters": searched, **keys}))


@FEW
@given(st.binary(max_size=400) | st.text(max_size=400).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    sweep_or_refused(content)
    best_or_refused(content)
    data_or_refused(content)


@settings(FEW, max_examples=120)
@given(st.text(st.sampled_from("abx01.-:,[]{}&*!|>'\"#%@`\\?<~ \n\t"), max_size=120))
def test_the_letters_of_yaml_in_any_order_are_read_or_refused(text: str) -> None:
    sweep_or_refused(text.encode())


# -- good files, changed


@st.composite
def changed(draw: st.DrawFn, good: str) -> bytes:
    """`good` with some of its keys and values replaced by drawn ones."""
    parts = re.split(r"([\w.-]+)", good)
    for _ in range(draw(st.integers(1, 3))):
        parts[2 * draw(st.integers(0, len(parts) // 2 - 1)) + 1] = json.dumps(draw(values))
    return "".join(parts).encode()


@st.composite
def torn(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with bytes changed, or with some of its lines twice or not at all."""
    lines = content.splitlines(keepends=True)
    times = st.sampled_from([1, 1, 1, 1, 0, 2])
    content = b"".join(line * draw(times) for line in lines)
    at = draw(st.integers(0, len(content)))
    put, after = draw(st.binary(max_size=8)), at + draw(st.integers(0, 8))
    return content[:at] + put + content[after:]


@pytest.mark.parametrize("name", ["mnist", "per_layer"])
def test_a_sweep_of_ours_with_changes_is_read_or_refused(name: str) -> None:
    good = yaml.safe_dump(SweepSpec.load(SWEEPS[0].with_stem(name)).to_dict())

    @settings(FEW, max_examples=40)
    @given(changed(good), torn(good.encode()))
    def change(drawn: bytes, content: bytes) -> None:
        sweep_or_refused(drawn)
        sweep_or_refused(content)

    change()


@settings(FEW, max_examples=60)
@given(changed(configurations.GOOD))
def test_a_best_yaml_with_changes_is_read_or_refused(content: bytes) -> None:
    best_or_refused(content)


@settings(FEW, max_examples=40)
@given(st.text(min_size=1, max_size=20) | st.sampled_from(["1e5", "0o17", "no", "1:30", "~", "#", "1_0"]))
def test_what_best_yaml_says_of_its_origin_comes_back_whatever_it_is(name: str) -> None:
    best = configurations.BEST
    assert best.provenance is not None
    origin = best.provenance.model_copy(update={"study": name, "uid": name, "created": name})
    found = type(best)(best.config, origin)
    assert read_or_refused(load_best, found.to_yaml().encode()) == found


NPZ = datasets.saved()
HEADS = [info.header_offset for info in zipfile.ZipFile(io.BytesIO(NPZ)).infolist()]


@settings(FEW, max_examples=80)
@given(st.sampled_from([*HEADS, len(NPZ) - 400]), st.integers(0, 300), st.binary(min_size=1, max_size=6))
def test_a_damaged_npz_is_read_or_refused(begin: int, offset: int, damage: bytes) -> None:
    at = begin + offset
    data_or_refused(NPZ[:at] + damage + NPZ[at + len(damage) :])


@settings(FEW, max_examples=50)
@given(
    st.text(max_size=60),
    st.sampled_from(["'|u1'", "'<f8'", "'|O'", "'|V3'", "[('a', 'u1')]", "'U3'", "None", "3"]),
)
def test_a_header_of_any_text_is_read_or_refused(shape: str, dtype: str) -> None:
    for text in (shape, datasets.described(dtype, shape), datasets.described(dtype)):
        header = datasets.headed(text.encode("ascii", "replace").decode(), bytes(40 * 784))
        data_or_refused(datasets.zipped(x_train=header))
