"""Gates: what refuses a network, with its figure and its limit; the comparison of two networks on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from statsmodels.stats.contingency_tables import mcnemar

from regtune.errors import GatesError
from regtune.registry.gates import (
    Gates,
    Tested,
    closed_gates,
    compare,
    load_gates,
    open_gates,
    refusals,
    wilson,
)
from regtune.training.runtime import configure

configure()

IMAGES = 1000
LABELS = np.arange(IMAGES, dtype=np.int32) % 10


def right(both: int, gained: int, lost: int, neither: int = 0) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    new = np.repeat([True, True, False, False], [both, gained, lost, neither])
    return new, np.repeat([True, False, True, False], [both, gained, lost, neither])


def network(
    wrong: int, name: str = "digits 1", techniques: int = 1, data: str = "d" * 64, first: int = 0
) -> Tested:
    """A network that is wrong on as many images, from `first` on."""
    shown = LABELS.copy()
    shown[first : first + wrong] = (shown[first : first + wrong] + 1) % 10
    return Tested(name, data, techniques, 1000, np.eye(10, dtype=np.float32)[shown])


def test_mcnemar_is_that_of_statsmodels_and_the_interval_that_of_newcombe() -> None:
    for gained, lost in ((12, 2), (5, 5), (30, 11), (1, 0)):
        table = [[36, gained], [lost, 4]]
        assert compare(*right(36, gained, lost, 4)).p == pytest.approx(mcnemar(table, exact=True).pvalue)
    found = compare(
        *right(36, 12, 2)
    )  # Newcombe 1998, Improved confidence intervals ... paired data, table II
    assert (found.difference, found.low, found.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)
    assert compare(*right(50, 0, 0)).p == 1.0
    assert wilson(98, 100) == pytest.approx((0.930, 0.9945), abs=5e-4)


@pytest.mark.parametrize(
    ("new", "champion", "passed", "verdict"),
    [
        (network(10), network(40), True, "better: "),
        (network(40), network(10), False, "worse: "),
        (network(10), network(11), False, "tied, and not simpler: "),
        (network(11, techniques=0), network(10), True, "tied and simpler: "),
        (
            network(80, techniques=0, first=500),
            network(79),
            False,
            "tied, but perhaps worse by more than 0.02: ",
        ),
        (
            network(10),
            network(40, data="e" * 64),
            False,
            "digits 1 was tested on other data (eeeeeeeeeeee...)",
        ),
    ],
)
def test_a_network_is_better_or_tied_and_simpler_or_refused(
    new: Tested, champion: Tested, passed: bool, verdict: str
) -> None:
    gate = open_gates(Gates(), new, LABELS, champion)[0]
    assert (gate.name, gate.passed) == ("champion", passed)
    assert gate.note.startswith(verdict), gate


def test_a_class_that_is_recognized_much_less_is_refused_although_the_whole_is_better() -> None:
    champion, new = network(300, first=0), network(0)
    worse = new.probabilities.copy()
    worse[LABELS == 7] = np.eye(10)[[8] * 100]
    new = Tested(new.name, new.data, new.techniques, new.entries, worse)
    better, classes = open_gates(Gates(), new, LABELS, champion)
    assert (better.passed, classes.passed, classes.figure) == (True, False, "class 7: −0.7000")
    assert open_gates(Gates(max_recall_loss=None), new, LABELS, champion)[1].passed is None


def test_the_first_version_has_nothing_to_beat_and_a_closed_test_set_is_said() -> None:
    assert [gate.passed for gate in open_gates(Gates(), network(10), LABELS, None)] == [True, True]
    closed = open_gates(Gates(), None, LABELS, network(10))
    assert [(gate.passed, "test set" in gate.note) for gate in closed] == [(None, True)] * 2


def asked(predict: Any, **changed: Any) -> dict[str, bool | None]:
    images = np.zeros((IMAGES, 784), np.uint8)
    images[np.arange(IMAGES), 28 * 14 + 2 * LABELS + 4] = 255  # the class is where the bright pixel is
    given: dict[str, Any] = {
        "trainings": [{"val_accuracy": 0.9}, {"val_accuracy": 0.9}],
        "digests": {"data": ("a" * 64, "a" * 64)},
        "size_bytes": 500_000,
        "seconds_a_digit": 0.002,
        **changed,
    }
    gates = closed_gates(Gates(), predict, images, LABELS, **given)
    return {gate.name: gate.passed for gate in gates}


def rough(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Looks for the bright pixel around the place of each class."""
    rows = images.reshape(-1, 28, 28).astype(np.float32)[:, 12:17]
    score = np.stack([rows[:, :, 2 * k + 3 : 2 * k + 6].sum(axis=(1, 2)) for k in range(10)], axis=1)
    return np.eye(10, dtype=np.float32)[score.argmax(axis=1)]


def exact(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Looks at one pixel a class."""
    return np.eye(10, dtype=np.float32)[images[:, 28 * 14 + 2 * np.arange(10) + 4].argmax(axis=1)]


def test_what_needs_no_test_set_is_asked_first() -> None:
    assert set(asked(rough).values()) == {True}
    assert asked(exact)["shift"] is False
    wrong = asked(
        lambda images: np.full((len(images), 10), 0.1, np.float32) + 0.05 * exact(images),
        trainings=[{"val_accuracy": 0.9}, {"val_accuracy": 0.91}],
        digests={"data": ("a" * 64, "b" * 64)},
        size_bytes=100_000_000,
        seconds_a_digit=2.0,
    )
    assert {name for name, one in wrong.items() if not one} >= {
        *("reproducible", "digests", "calibration", "size", "latency")
    }


def test_limits_come_from_a_file_whose_mistakes_have_lines(tmp_path: Path) -> None:
    file = tmp_path / "gates.yaml"
    file.write_text("max_ece: 0.01\nmax_megabytes: null\n")
    assert load_gates(file) == Gates(max_ece=0.01, max_megabytes=None)
    assert load_gates(None) == Gates()
    file.write_text("max_ecc: 0.01\nmax_megabytes: -1\n")
    with pytest.raises(GatesError) as raised:
        load_gates(file)
    first, second = raised.value.problems
    assert first.startswith(f"{file}:1: max_ecc: ")
    assert first.endswith('did you mean "max_ece"?')
    assert second.startswith(f"{file}:2: max_megabytes: ")
    assert refusals(open_gates(Gates(), network(40), LABELS, network(10)))[0].name == "champion"
