"""Gates: what refuses a network, with its figure and its limit; the comparison of two networks on the same images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm
from statsmodels.stats.contingency_tables import mcnemar
from typer.testing import CliRunner

from regtune.cli import app
from regtune.data.arrays import Images
from regtune.errors import GatesError
from regtune.registry.gates import (
    Gates,
    Tested,
    closed_gates,
    compare,
    load_gates,
    open_gates,
    refusals,
    seconds_a_digit,
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


def test_of_many_images_the_interval_is_the_one_of_wald_and_of_few_it_covers() -> None:
    gained, lost, images = 9_000, 8_000, 10**6
    found = compare(*right(970_000, gained, lost, 13_000))
    error = norm.ppf(0.975) * np.sqrt(gained + lost - (gained - lost) ** 2 / images) / images
    assert (found.low, found.high) == pytest.approx((0.001 - error, 0.001 + error), abs=error / 100)
    covered = []
    for counts in np.random.default_rng(0).multinomial(200, (0.92, 0.03, 0.015, 0.035), 1000):
        found = compare(*right(*counts))
        covered.append(found.low <= 0.015 <= found.high)
    assert np.mean(covered) > 0.94  # 95 %, less two standard errors of a thousand draws


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


def test_a_champion_with_the_predictions_of_other_images_cannot_be_compared() -> None:
    new, champion = network(10), network(10)
    champion = replace(champion, probabilities=champion.probabilities[:7])
    assert [gate.passed for gate in open_gates(Gates(), new, LABELS, champion)] == [False, None]


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


def test_a_trained_network_passes_and_what_is_broken_is_refused_by_the_gate_for_it() -> None:
    """With the default limits, on real digits: what each broken network does wrong is known."""
    from regtune import build_model, load_data, train
    from regtune.training.measure import batches_of, predict

    data = load_data("mnist-5k")
    config = {
        "data": {"name": "mnist-5k"},
        "regularization": {"dropout": 0.2},
        "training": {"max_epochs": 10},
    }
    trained, untrained = train(config, data).model, build_model({**config, "seed": 1})
    pixels = np.rint(data.x_val * 255).astype(np.uint8)

    def network(weights: Any, sharpened: bool = False) -> Any:
        def answer(images: Images) -> NDArray[np.float32]:
            found = predict(weights, batches_of(images.astype(np.float32) / np.float32(255)))
            return np.eye(10, dtype=np.float32)[found.argmax(axis=1)] if sharpened else found

        return answer

    def refused(answer: Any) -> set[str]:
        gates = closed_gates(
            Gates(),
            answer,
            pixels,
            data.y_val,
            trainings=[{"val_accuracy": 0.9}] * 2,
            digests={"data": (data.digest, data.digest)},
            size_bytes=470_000,
            seconds_a_digit=seconds_a_digit(answer, pixels),
        )
        return {gate.name for gate in refusals(gates)}

    assert refused(network(trained)) == set()
    assert refused(network(trained, sharpened=True)) == {"calibration"}
    assert refused(network(untrained)) >= {"shift", "noise"}
    kernel = trained.layers[0].kernel  # pixels that are black in every image may weigh anything
    kernel.assign(kernel + 99 * kernel * (pixels == 0).all(axis=0)[:, None])
    assert refused(network(trained)) >= {"noise"}
    assert "calibration" not in refused(network(trained))


def test_the_schema_has_every_limit_with_its_default_and_meaning() -> None:
    schema = json.loads(CliRunner().invoke(app, ["schema", "gates"]).stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    defaults = {name: one["default"] for name, one in schema["properties"].items()}
    assert Gates(**defaults) == Gates()
    assert all(one["description"] for one in schema["properties"].values())
    accepts = jsonschema.Draft202012Validator(schema).is_valid
    assert accepts({"max_ece": None}), "a gate is switched off"
    assert not accepts({"max_ecc": 0.1})
    assert "expected sweep or gates" in str(CliRunner().invoke(app, ["schema", "trial"]).exception)


def test_the_example_of_the_documents_is_a_file_of_gates(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs/gates.md").read_text()
    file = tmp_path / "gates.yaml"
    file.write_text(page.partition("```yaml\n")[2].partition("```")[0])
    assert load_gates(file) != Gates()
