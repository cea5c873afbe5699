"""The report of a study: its export, the page that is drawn from it, and the verb."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from exports import STUDY, study_at
from typer.testing import CliRunner

from regtune.cli import app
from regtune.errors import InputError
from regtune.evidence.diagnosis import Diagnosis
from regtune.evidence.export import MOST_TRIALS, Export, export_of, load_export
from regtune.evidence.report import page_of, page_of_two, plotly_js
from regtune.evidence.report.charts import scale, ticks
from regtune.evidence.report.diagnosis import png
from regtune.study.decision import Decision
from regtune.study.decision_text import sentence

NASTY = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \"quoted\" 'single' {{ 7 * 7 }} \u2028"
)
MOST_BYTES = 6_000_000
PLOTLY = "plotly.js"
LOADING = ("src", "href", "srcset", "data", "action", "poster", "background", "style")
"""Attributes that make a browser load something."""


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return export_of(study_at(tmp_path_factory.mktemp("decided")), STUDY)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return export_of(study_at(tmp_path_factory.mktemp("bare"), decided=False), STUDY)


class Parsed(HTMLParser):
    """A page's elements: tags, attributes, and the text of each script; of Plotly, which is large, its name."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._script: dict[str, str | None] | None = None
        self.feed(page.replace(plotly_js(), PLOTLY))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._script = dict(attrs) if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts.append((self._script, data))
            self._script = None
        else:
            self.text += f"{data} "

    def json(self, key: str) -> Any:
        return json.loads(next(text for attrs, text in self.scripts if attrs.get("id") == key))


def test_an_export_is_read_back_as_it_was_and_draws_the_same_page(decided: Export, tmp_path: Path) -> None:
    path = tmp_path / "export.json"
    path.write_text(json.dumps(decided.to_json()))
    assert load_export(path) == decided
    assert page_of(load_export(path)) == page_of(decided)
    assert len(path.read_bytes()) < 100_000


def test_an_export_has_the_trials_the_replicates_and_their_mean_curves(decided: Export) -> None:
    best = decided.trials[0]
    assert (best.rank, best.number, best.value) == (1, 3, pytest.approx(0.0799, abs=1e-3))
    assert [len(curve) for curve in best.curves.values()] == [12, 12, 12]
    assert best.figures["val_cross_entropy"] == pytest.approx(best.value, rel=1e-5)
    none = [one for one in decided.replicates if one.candidate == "c-none"]
    assert [one.index for one in none] == [0, 1, 2, 3]
    (curve,) = (one for one in decided.curves if one.candidate == "c-none")
    assert (curve.replicates, len(curve.means["val_cross_entropy"])) == (4, 12)
    floors = [0.3 * 2.718281828 ** (-1 / 2.5) + 0.13 + 0.003 * index for index in range(4)]
    assert curve.means["val_cross_entropy"][0] == pytest.approx(sum(floors) / 4, rel=1e-4)
    assert {cost.what: cost.trainings for cost in decided.costs} == {
        **{"complete trials": 7, "pruned trials": 1, "failed trials": 1},
        "replicates": 24,
    }
    assert (decided.saved_epochs, decided.left_out) == (27, 0)


def test_a_space_says_what_was_searched_by_logarithms(decided: Export) -> None:
    found = {one.name: (one.log, one.optional, one.low, one.high) for one in decided.study.space}
    assert found == {
        "dropout": (False, False, 0.0, 0.6),
        "l1": (True, True, 1e-7, 1e-3),
        "batchnorm": (False, False, None, None),
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "export.json: expected what `regtune report STUDY --json` prints; JSON: "),
        (
            '{"regtune_export": 2}',
            "export.json: expected what `regtune report STUDY --json` prints; regtune_export",
        ),
        ("not json", "export.json: expected what"),
        (None, "export.json: cannot be read"),
    ],
)
def test_a_file_that_is_no_export_is_refused_in_one_line(
    content: str | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "export.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=re.escape(said)) as refused:
        load_export(path)
    assert "\n" not in str(refused.value)


def test_a_page_is_one_file_below_its_limit_that_names_nothing_to_load(decided: Export) -> None:
    page = page_of(decided)
    assert len(page.encode()) < MOST_BYTES
    parsed = Parsed(page)
    loading = [
        (tag, name, value)
        for tag, attributes in parsed.tags
        for name, value in attributes.items()
        if name in LOADING and re.search(r"//|url\(|@import", value or "")
    ]
    assert [one for one in loading if not (one[2] or "").startswith("data:image/png;base64,")] == []
    assert not {tag for tag, _ in parsed.tags} & {"link", "iframe", "object", "embed", "base"}
    assert "://" not in page.replace(plotly_js(), "")


def test_the_policy_allows_the_scripts_of_the_page_and_nothing_else(decided: Export) -> None:
    parsed = Parsed(page_of(decided))
    (policy,) = (
        of["content"] for tag, of in parsed.tags if of.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    run = [text for attributes, text in parsed.scripts if "type" not in attributes]
    run[run.index(PLOTLY)] = plotly_js()
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in run}
    assert len(hashes) == 3
    assert hashes == set(re.findall(r"'sha256-[^']+'", policy))
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy


def test_the_page_says_the_decision_and_what_was_measured(decided: Export) -> None:
    assert isinstance(decided.decision, Decision)
    text = " ".join(Parsed(page_of(decided)).text.replace("\u00a0", " ").split())
    assert sentence(decided.decision) in text
    for said in (
        "It overfits. The gap is wide",
        "does not hold here",
        "L1 is flat",
        "1 of 9 trials were pruned",
    ):
        assert said in text, said
    assert "Not measured yet" not in text


def test_what_was_not_measured_says_which_command_would(bare: Export) -> None:
    parsed = Parsed(page_of(bare))
    for command in (f"regtune decide {STUDY}", f"regtune diagnose {STUDY}"):
        assert parsed.text.count(command) >= 2
    assert "The best single run is trial 3" in parsed.text
    assert "beats" not in parsed.text
    assert set(parsed.json("figures")) >= {"parallel", "history", "pruning", "cost", "curves"}


def test_a_part_that_a_diagnosis_lacks_says_what_it_needs(decided: Export) -> None:
    assert isinstance(decided.diagnosis, Diagnosis)
    lacking = {"bias_variance": None, "fit": None, "missing": {"bias_variance": "It needs 3 strengths."}}
    partial = decided.model_copy(update={"diagnosis": decided.diagnosis.model_copy(update=lacking)})
    text = Parsed(page_of(partial)).text
    assert "It needs 3 strengths." in text
    assert "What is taken for what" in text


def test_text_of_a_study_is_shown_and_never_run(tmp_path: Path) -> None:
    export = export_of(study_at(tmp_path, description=NASTY), STUDY)
    facts = export.study.model_copy(
        update={"name": NASTY, "versions": dict.fromkeys(export.study.versions, NASTY)}
    )
    trials = tuple(one.model_copy(update={"mix": NASTY, "message": NASTY}) for one in export.trials)
    nasty = export.model_copy(update={"study": facts, "trials": trials})
    plain = Parsed(page_of(export)).tags
    for page, same in (
        (page_of(nasty), plain),
        (page_of_two(nasty, nasty), Parsed(page_of_two(export, export)).tags),
    ):
        parsed = Parsed(page)
        assert [tag for tag, _ in parsed.tags] == [tag for tag, _ in same]
        assert "</script><script>alert(1)" in parsed.text
        assert "{{ 7 * 7 }}" in parsed.text
        data = parsed.json("data")
        assert (data[0] if isinstance(data, list) else data)["study"]["name"] == NASTY
        texts = json.dumps(parsed.json("figures"))
        assert "<script>" not in texts
        assert "<img" not in texts


def test_two_studies_side_by_side_say_what_differs(decided: Export, bare: Export) -> None:
    other = bare.study.model_copy(
        update={
            "name": "other",
            "spec": {**bare.study.spec, "method": "random"},
            "data": {"digest": "0" * 64},
        }
    )
    page = Parsed(page_of_two(decided, bare.model_copy(update={"study": other})))
    text = " ".join(page.text.split())
    assert f"{STUDY} and other" in text
    assert "Nothing was replicated yet: regtune decide other" in text
    assert "different images (their digests differ): their figures cannot be compared" in text
    assert "method tpe random" in text
    assert set(page.json("figures")) == {"against", "histories"}


def test_an_axis_is_logarithmic_where_the_search_was_with_off_at_its_left() -> None:
    over = scale([0, 1e-6, 1e-4], log=True, low=1e-7, high=1e-3)
    assert [over.at(value) for value in (1e-6, 1e-4)] == [-6, -4]
    assert over.at(0) < -7
    assert [*over.ticktext] == ["off", "1e-7", "1e-6", "1e-5", "1e-4", "0.001"]
    assert [*scale([0.1, 0.6], log=False, low=0.0, high=0.6).ticktext] == ["0", "0.2", "0.4", "0.6"]
    assert scale([0, 0.1, 0.5], log=False, low=0.1, high=0.5).reach == (0, 0.5)  # off, beside the range
    words = scale(["b", "a"], log=False, low=None, high=None, order=("a", "b"))
    assert [*words.ticktext] == ["a", "b"]


@pytest.mark.parametrize(
    ("low", "high"), [(0.17, 0.19), (0.17, 0.5), (0.07, 1.1), (1e-7, 1e-3), (1e-12, 1e3)]
)
def test_a_logarithmic_axis_has_a_few_ticks_inside_its_range(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low * 0.999 <= tick <= high * 1.001 for tick in found)


def test_a_picture_of_an_image_is_a_png_dark_on_light(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "image.png").write_bytes(png(bytes([255] + [0] * 783)))
    with Image.open(tmp_path / "image.png") as image:
        assert image.size == (28, 28)
        assert [image.getpixel((0, 0)), image.getpixel((1, 0))] == [0, 255]


def test_the_verb_writes_the_page_prints_its_figures_and_asks_before_it_replaces_another_file() -> None:
    study_at(Path("mlruns")).dispose()
    run = CliRunner().invoke
    printed = run(app, ["report", STUDY, "--json"])
    Path("export.json").write_text(printed.stdout)
    first = run(app, ["report", "export.json"])
    assert (first.exit_code, Path("report.html").is_file()) == (0, True)
    assert re.search(r"Wrote report\.html \([45]\.\d MB\)", first.stderr)
    assert run(app, ["report", "export.json"]).exit_code == 0
    Path("report.html").write_text("mine")
    refused = run(app, ["report", "export.json"])
    assert isinstance(refused.exception, InputError)
    assert "Replace report.html, which holds something else?" in str(refused.exception)
    assert Path("report.html").read_text() == "mine"
    assert run(app, ["report", "export.json", "export.json", "--yes"]).exit_code == 0
    assert "and" in Parsed(Path("report.html").read_text()).text
    for arguments in (["a", "b", "c"], ["export.json", "--json", "-o", "x.html"]):
        assert isinstance(run(app, ["report", *arguments]).exception, InputError)
    assert not [*Path().glob(".report.html*")]
    refused = run(app, ["report", "export.json", "-o", "."])
    assert str(refused.exception) == "--output .: expected a file, found a folder"


def test_mlflow_is_away_and_the_page_is_written_all_the_same() -> None:
    study_at(Path("mlruns")).dispose()
    done = CliRunner().invoke(app, ["report", STUDY], env={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    assert done.exit_code == 0
    assert Path("report.html").is_file()
    assert done.stderr.splitlines()[-1].startswith("The page is not in MLflow: ")


def test_the_wheel_has_the_templates(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    build = [
        sys.executable,
        "-c",
        "import hatchling.build as b, sys; print(b.build_wheel(sys.argv[1]))",
        str(tmp_path),
    ]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if "/report/template/" in name}
    assert packed == {path.name for path in (root / "regtune/evidence/report/template").iterdir()}


def _accuracy(export: Export) -> Export:
    facts = export.study.model_copy(update={"metric": "val_accuracy", "goal": "maximize"})
    trials = tuple(one.model_copy(update={"value": one.figures.get("val_accuracy")}) for one in export.trials)
    assert export.decision is not None
    made = export.decision.model_copy(update={"metric": "val_accuracy", "goal": "maximize"})
    return export.model_copy(update={"study": facts, "trials": trials, "decision": made})


def _undecided(export: Export) -> Export:
    assert export.decision is not None
    nothing = {
        "estimate": None,
        "to_none": None,
        "to_chosen": None,
        "figures": {},
        "bought": {},
        "replicates": 0,
    }
    candidates = tuple(one.model_copy(update=nothing) for one in export.decision.candidates)
    changes = {"candidates": candidates, "end": "too_few", "chosen": None, "answer": None, "optimism": None}
    return export.model_copy(update={"decision": export.decision.model_copy(update=changes), "curves": ()})


def _constant(export: Export) -> Export:
    trials = []
    for one in export.trials:
        curves = {name: [0.0] * len(curve) for name, curve in one.curves.items()}
        trials.append(one.model_copy(update={"value": one.value and 0.0, "curves": curves}))
    return export.model_copy(update={"trials": tuple(trials), "decision": None, "curves": ()})


def _diverged(export: Export) -> Export:
    curves = {"val_cross_entropy": [0.3, None], "cross_entropy": [None, None]}
    trials = tuple(one.model_copy(update={"curves": curves}) for one in export.trials)
    return export.model_copy(update={"trials": trials})


CASES = {
    "no trial": lambda export: export.model_copy(
        update={"trials": (), "costs": (), "decision": None, "curves": ()}
    ),
    "only pruned ones": lambda export: export.model_copy(
        update={
            "trials": tuple(one for one in export.trials if one.state == "PRUNED"),
            "decision": None,
            "curves": (),
        }
    ),
    "one trial": lambda export: export.model_copy(update={"trials": export.trials[:1], "decision": None}),
    "an accuracy": _accuracy,
    "too few replicates": _undecided,
    "losses that are all zero": _constant,
    "losses that are not finite": _diverged,
    "a space of another version": lambda export: export.model_copy(
        update={"study": export.study.model_copy(update={"space": ()})}
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_page_is_drawn_of_whatever_a_study_has(case: str, decided: Export) -> None:
    export = CASES[case](decided)
    figures = Parsed(page_of(export)).json("figures")
    assert "NaN" not in json.dumps(figures)
    assert all(figure["data"] for figure in figures.values())
    assert page_of_two(export, decided)


def test_of_a_large_study_the_first_trials_of_the_board_are_exported_and_the_others_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("regtune.evidence.export.MOST_TRIALS", 3)
    export = export_of(study_at(tmp_path, decided=False), STUDY)
    assert [one.rank for one in export.trials] == [1, 2, 3]
    assert export.left_out == 8
    assert {cost.what: cost.trainings for cost in export.costs}["complete trials"] == 7
    assert "8 more trials are not in the page" in Parsed(page_of(export)).text


def test_the_largest_page_stays_below_its_limit(decided: Export) -> None:
    most = [
        one.model_copy(update={"number": number})
        for number in range(MOST_TRIALS)
        for one in decided.trials[:1]
    ]
    plain = {"curves": {}, "parameters": dict.fromkeys("abcdefgh", 0.123456789)}
    trials = tuple(one if number < 200 else one.model_copy(update=plain) for number, one in enumerate(most))
    replicates = tuple(decided.replicates[0] for _ in range(12 * 64))
    page = page_of(decided.model_copy(update={"trials": trials, "replicates": replicates}))
    assert len(page.encode()) < MOST_BYTES
