"""Files that hypothesis draws: values, bytes, and good files with something changed.

Each is read, or refused with exit code 2 in words that stay readable; no other exception ever comes out.
"""

from __future__ import annotations

import copy
import io
import json
import os
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
from regtune.config.trial import KEYS
from regtune.data.datasets import load_arrays
from regtune.errors import InputError
from regtune.study.best import load_best

FEW = settings(
    max_examples=30,
    derandomize="CI" in os.environ,  # what is drawn anew each time is for those who can look into it
)

ODD = [10**40, -(2**63), 1e308, 5e-324, "1e5", "no", "0x1F", "~", "../..", "a\nb", "\x1b[2J", "mnist-5k"]
ordinary = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
scalars = ordinary | st.sampled_from(ODD)
KNOWN = [*KEYS.homes, *SweepSpec.model_fields, "value", "values", "min", "max", "when"]
words = st.sampled_from(KNOWN) | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=5)),
    max_leaves=25,
)
groups = st.dictionaries(words, values, max_size=8)


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
    assert all(line.isprintable() and len(line) < 2 * MAX_MESSAGE for line in lines)
    return None


def data_or_refused(content: bytes) -> None:
    load_arrays.cache_clear()
    read_or_refused(lambda path: load_arrays(str(path)), content, "drawn.npz")


def yaml_of(found: Any) -> bytes:
    return yaml.safe_dump(found, allow_unicode=True).encode("utf-8", "surrogatepass")


def json_of(found: Any) -> bytes:
    return json.dumps(found).encode()


# -- anything at all


@FEW
@given(values, st.sampled_from([yaml_of, json_of]))
def test_any_values_are_a_configuration_or_are_refused(found: Any, write: Callable[[Any], bytes]) -> None:
    read_or_refused(load_best, write(found))
    read_or_refused(load_best, write({"provenance": found}))
    read_or_refused(load_best, write({"regularization": found, "training": found, "data": found}))


@FEW
@given(st.binary(max_size=400) | st.text(max_size=400).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    read_or_refused(SweepSpec.load, content)
    read_or_refused(load_best, content)
    data_or_refused(content)


yaml_letters = st.text(st.sampled_from("abx01.-:,[]{}&*!|>'\"#%@`\\?<~ \n\t"), max_size=120)


@settings(FEW, max_examples=120)
@given(yaml_letters)
def test_the_letters_of_yaml_in_any_order_are_read_or_refused(text: str) -> None:
    read_or_refused(SweepSpec.load, text.encode())


# -- good files, changed


def places(found: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: list[tuple[Any, ...]] = []
    pairs = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, value in pairs:
        inner += [(*where, key), *places(value, (*where, key))]
    return inner


@st.composite
def changed(draw: st.DrawFn, good: Any) -> Any:
    """`good` with some of its keys dropped, renamed, moved elsewhere, or given another value."""
    found = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        every = places(found)
        if not every:
            break
        *above, last = draw(st.sampled_from(every))
        group = found
        for key in above:
            group = group[key]
        how = draw(st.sampled_from(["drop", "replace", "rename", "swap", "wrap"]))
        if how == "drop":
            del group[last]
        elif how == "rename" and isinstance(group, dict):
            group[draw(words)] = group.pop(last)
        elif how == "swap":
            other = draw(st.sampled_from(list(group) if isinstance(group, dict) else range(len(group))))
            group[last], group[other] = group[other], group[last]
        elif how == "wrap":
            group[last] = draw(st.sampled_from([[group[last]], {"value": group[last]}, str(group[last])]))
        else:
            group[last] = draw(values)
    return found


@st.composite
def torn(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with bytes changed, lines given twice or left out, or its end cut off."""
    how = draw(st.sampled_from(["bytes", "twice", "without", "cut"]))
    if how == "bytes":
        at = draw(st.integers(0, len(content) - 1))
        put, after = draw(st.binary(min_size=1, max_size=8)), at + draw(st.integers(0, 8))
        return content[:at] + put + content[after:]
    if how == "cut":
        return content[: draw(st.integers(0, len(content) - 1))]
    lines = content.splitlines(keepends=True)
    at = draw(st.integers(0, len(lines) - 1))
    return b"".join(lines[:at] + (lines[at : at + 1] * 2 if how == "twice" else []) + lines[at + 1 :])


@pytest.mark.parametrize("name", ["mnist", "per_layer"])
def test_a_sweep_of_ours_with_changes_is_read_or_refused(name: str) -> None:
    (file,) = (path for path in SWEEPS if path.stem == name)
    good = yaml.safe_load(file.read_text())

    @settings(FEW, max_examples=40)
    @given(changed(good))
    def values_change(found: Any) -> None:
        spec = read_or_refused(SweepSpec.load, yaml_of(found))
        assert spec is None or SweepSpec.from_dict(spec.to_dict()) == spec

    @settings(FEW, max_examples=40)
    @given(torn(file.read_bytes()))
    def bytes_change(content: bytes) -> None:
        read_or_refused(SweepSpec.load, content)

    values_change()
    bytes_change()


@settings(FEW, max_examples=60)
@given(changed(yaml.safe_load(configurations.GOOD)))
def test_a_best_yaml_with_changes_is_read_or_refused(found: Any) -> None:
    best = read_or_refused(load_best, yaml_of(found))
    assert best is None or read_or_refused(load_best, best.to_yaml().encode()) == best


@settings(FEW, max_examples=40)
@given(st.data())
def test_what_best_yaml_says_of_its_origin_comes_back_whatever_it_is(data: st.DataObject) -> None:
    odd = st.sampled_from(["1e5", "0o17", "no", "1:30", "~", "#", "1_0"])
    name = data.draw(st.text(min_size=1, max_size=20) | odd)
    best = configurations.BEST
    assert best.provenance is not None
    origin = best.provenance.model_copy(update={"study": name, "uid": name, "created": name})
    found = type(best)(best.config, origin)
    again = read_or_refused(load_best, found.to_yaml().encode())
    assert again == found


NPZ = datasets.saved()
HEADS = [info.header_offset for info in zipfile.ZipFile(io.BytesIO(NPZ)).infolist()]


@settings(FEW, max_examples=80)
@given(st.data())
def test_a_damaged_npz_is_read_or_refused(data: st.DataObject) -> None:
    begin = data.draw(st.sampled_from([*HEADS, len(NPZ) - 400]))
    at = begin + data.draw(st.integers(0, 300))
    damage = data.draw(st.binary(min_size=1, max_size=6))
    content = NPZ[:at] + damage + NPZ[at + len(damage) :]
    data_or_refused(content)


@settings(FEW, max_examples=50)
@given(
    st.text(max_size=60),
    st.sampled_from(["'|u1'", "'<f8'", "'|O'", "'|V3'", "[('a', 'u1')]", "'U3'", "None", "3"]),
)
def test_a_header_of_any_text_is_read_or_refused(shape: str, dtype: str) -> None:
    for text in (shape, datasets.described(dtype, shape), datasets.described(dtype)):
        header = datasets.headed(text.encode("ascii", "replace").decode(), bytes(40 * 784))
        data_or_refused(datasets.zipped(x_train=header))
