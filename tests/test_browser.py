"""The MLflow page in a real Chromium: a person who opens it sees trials, curves and the compare view, and no error.

With REGTUNE_SCREENSHOTS set, the pictures of the documentation go to that folder.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from parts import chromium
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from specs import QUICK
from stores import free_port
from versions import write_version

from regtune.config.sweepfile import SweepSpec
from regtune.evidence.export import export_of
from regtune.evidence.report import page_of
from regtune.registry import journal
from regtune.registry.card import description_of
from regtune.registry.choice import choose
from regtune.registry.lineage import tags_of
from regtune.registry.promotion_run import begin
from regtune.registry.store import Version, open_registry
from regtune.registry.version import Gate
from regtune.server.process import Server, serving
from regtune.settings import Settings
from regtune.storage import open_engine
from regtune.tracking import names
from regtune.tracking.page import trials_page
from regtune.tracking.studies import StudyTrials
from regtune.tracking.sync import log_report, sync
from regtune.training.runtime import configure

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import big_study

pytestmark = [pytest.mark.slow, pytest.mark.browser]
expect.set_options(timeout=180_000)

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run"),
]
TRIALS = 24
MODEL = "digits"
COLUMNS = ("dropout", "l1", "l2", "batchnorm")
SETTLING_MS = 1500
"""For a picture only: until charts have stopped moving."""
KNOWN = (
    *("net::ERR_NAME_NOT_RESOLVED", "net::ERR_INTERNET_DISCONNECTED", "net::ERR_PROXY_CONNECTION_FAILED"),
    "net::ERR_NETWORK_CHANGED",
    "ResizeObserver loop completed with undelivered notifications",
)
"""What the console says of requests to the internet, where there is none, of a network that a container engine changes
meanwhile, and of a table laid out in two steps.
"""
ACCOUNTS = "/mlflow/users/current"
"""MLflow's page asks at its start who is logged in; a server without accounts answers 404, as it should."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(os.environ.get("REGTUNE_SCREENSHOTS") or tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(REGTUNE_HOME=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def server(settings: Settings) -> Iterator[Server]:
    spec = SweepSpec.load(QUICK, overrides=[f"run_cap={TRIALS}"])
    big_study.make_study(settings, spec, TRIALS, unfinished=False)
    assert [entry.wrote.trials for entry in sync(settings, tell=lambda *_: None) if entry.wrote] == [TRIALS]
    page = settings.home / "report.html"
    page.write_text(page_of(export_of(open_engine(settings.storage_url), spec.name)))
    log_report(settings, spec.name, page)
    with serving(settings, free_port()) as server:
        yield server


@pytest.fixture(scope="module")
def trials(server: Server) -> list[Run]:
    """The trials' runs, best first, those without a figure last."""
    client = MlflowClient(server.url)
    (experiment,) = [entry for entry in client.search_experiments() if names.SWEEP in entry.tags]
    order = ["metrics.`best/val_cross_entropy` ASC"]
    of_trials = f"tags.`{names.KIND}` = 'trial'"
    return list(client.search_runs([experiment.experiment_id], of_trials, order_by=order))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page, 1440 pixels wide, whose console is empty when it is closed."""
    said: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        known = message.location.get("url", "").endswith(ACCOUNTS) or any(
            text in message.text for text in KNOWN
        )
        if message.type == "error" and not known:
            said.append(f"{message.text} ({message.location.get('url')})")

    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    found = context.new_page()
    found.on("console", listen)
    found.on("pageerror", lambda error: said.append(str(error)))
    found.set_default_timeout(180_000)
    yield found
    context.close()
    assert said == []


@pytest.fixture
def experiment(page: Page, server: Server, trials: list[Run]) -> str:
    """The address of the trials, best first, as `regtune ui` opens it. MLflow's assistant is sent away once."""
    address = trials_page(server.url)
    assert address is not None
    page.goto(address)
    page.get_by_role("button", name="Close").first.click()
    expect(page.get_by_text(f"{len(trials)} matching runs")).to_be_visible()
    return address


def test_the_table_shows_trials_best_first_with_parameters_and_figures(
    page: Page, experiment: str, trials: list[Run], pictures: Path
) -> None:
    for column in ("best/val_cross_entropy", "best/val_accuracy", *COLUMNS):
        expect(page.get_by_role("columnheader", name=column, exact=True).first).to_be_visible()
    shown = page.locator(".ag-pinned-left-cols-container").get_by_role("link")
    expect(shown.nth(0)).to_have_text(trials[0].info.run_name)
    expect(shown.nth(1)).to_have_text(trials[1].info.run_name)
    expect(page.get_by_text(f"{trials[0].data.metrics['best/val_accuracy']}"[:6]).first).to_be_visible()
    expect(page.get_by_text("Which regularization makes this network generalize best?")).to_be_visible()
    page.screenshot(path=pictures / "mlflow-runs.png")


def test_charts_draw_trials_from_parameters_to_accuracy(page: Page, experiment: str, pictures: Path) -> None:
    page.goto(f"{experiment}&compareRunsMode=CHART")
    plot = page.locator("svg .parcoords, .js-plotly-plot").first
    expect(plot).to_be_visible()
    for name in (*COLUMNS, "best/val_accuracy"):
        axis = page.locator(".axis-title, .parcoords text").get_by_text(name, exact=True).first
        expect(axis).to_be_visible()
    page.wait_for_timeout(SETTLING_MS)
    page.screenshot(path=pictures / "mlflow-charts.png")


def test_a_run_shows_its_curves(page: Page, experiment: str, trials: list[Run]) -> None:
    best = trials[0]
    server, info = experiment.partition("/#")[0], best.info
    page.goto(f"{server}/#/experiments/{info.experiment_id}/runs/{info.run_id}/model-metrics")
    expect(page.get_by_role("heading", name=best.info.run_name)).to_be_visible()
    page.get_by_placeholder("Search metric charts").fill("^val_")
    for name in ("val_accuracy", "val_cross_entropy", "val_loss"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    expect(page.locator(".js-plotly-plot .scatterlayer path.js-line").first).to_be_attached()


def test_trials_are_compared_in_parallel_coordinates(page: Page, experiment: str, pictures: Path) -> None:
    for row in range(8):
        page.locator(".ag-pinned-left-cols-container .ag-row").nth(row).get_by_role("checkbox").check()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_text("Comparing 8 Runs from 1 Experiment")).to_be_visible()
    for box, name in ((0, "l2"), (1, "best/val_accuracy")):
        page.get_by_role("combobox").nth(box).click()
        page.get_by_role("combobox").nth(box).fill(name)
        page.keyboard.press("Enter")
        page.keyboard.press("Escape")
    for name in (*COLUMNS, "best/val_accuracy"):
        expect(page.locator(".parcoords .axis-title").get_by_text(name, exact=True).first).to_be_visible()
    page.wait_for_timeout(SETTLING_MS)
    page.screenshot(path=pictures / "mlflow-compare.png")


def test_the_study_says_who_won(page: Page, experiment: str, trials: list[Run], server: Server) -> None:
    parent = trials[0].data.tags[names.PARENT]
    page.goto(f"{server.url}/#/experiments/{trials[0].info.experiment_id}/runs/{parent}")
    winner = re.compile(rf"Best (trial|so far): {re.escape(trials[0].info.run_name)}")
    expect(page.get_by_text(winner)).to_be_visible()


@pytest.fixture(scope="module")
def promoted(settings: Settings, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Version:
    """A version with its card, registered as a promotion of the study's best trial does it, but of another network."""
    configure()
    registry, engine = open_registry(settings), open_engine(settings.storage_url)
    choice = choose(engine, SweepSpec.load(QUICK).name)
    facts = StudyTrials(engine, choice.source.study, at_rest=True).facts
    run = begin(registry, facts, choice, MODEL)
    registry.create(MODEL, run.experiment_id)
    files = tmp_path_factory.mktemp("version") / "files"
    gates = (Gate(name="champion", figure="–", limit="better", passed=True, note="there is no champion yet"),)
    record, digest = write_version(files, MODEL, source=choice.source, gates=gates)
    run.gated(gates)
    description = description_of(record)
    version = registry.register(
        MODEL,
        files,
        experiment_id=run.experiment_id,
        run_id=run.run_id,
        tags=tags_of(record, digest, description),
        description=description,
    )
    run.tested(record, version.model_id)
    run.end("FINISHED")
    journal.move(
        registry, MODEL, names.CHAMPION, version.number, journal.read(registry, MODEL), why="promoted"
    )
    return registry.find(MODEL)


def follow(page: Page, name: str | re.Pattern[str]) -> None:
    """Go where a link of a description leads, which opens a tab of its own."""
    page.goto(urljoin(page.url, page.get_by_role("link", name=name).get_attribute("href")))


def test_a_promoted_model_shows_its_card_its_figures_and_where_it_comes_from(
    page: Page, experiment: str, server: Server, promoted: Version, trials: list[Run], pictures: Path
) -> None:
    accuracy = MlflowClient(server.url).get_run(promoted.run_id).data.metrics[names.tested("accuracy")]
    page.goto(f"{server.url}#/models/{MODEL}")
    expect(page.get_by_role("status", name="champion")).to_be_visible()
    follow(page, "journal")
    expect(page.get_by_text("Keep this run")).to_be_visible()
    expect(page.get_by_text('"why":"promoted"')).to_be_visible()

    page.goto(f"{server.url}#/models/{MODEL}/versions/{promoted.number}")
    expect(page.get_by_text(f"Accuracy on 1,000 test images: {accuracy:.4f}")).to_be_visible()
    for section in ("How to load it", "Figures", "Gates", "Openings of the test set", "What it is not for"):
        expect(page.get_by_role("heading", name=section, exact=True)).to_be_visible()
    cell = page.get_by_role("cell", name="calibration error (ECE)")
    assert (cell.text_content() or "").endswith("\N{NO-BREAK SPACE}" * 2)  # MLflow's tables have no padding
    page.screenshot(path=pictures / "mlflow-version.png")
    page.get_by_role("link", name=f"promotion of {MODEL}").click()
    expect(page.get_by_text(names.tested("accuracy"), exact=True)).to_be_visible()
    follow(page, re.compile(r"^trial \d+$"))
    expect(page.get_by_role("heading", name=trials[0].info.run_name)).to_be_visible()

    page.goto(f"{server.url}#/experiments/{trials[0].info.experiment_id}/models/{promoted.model_id}")
    expect(page.get_by_text(f"Accuracy on 1,000 test images: {accuracy:.4f}")).to_be_visible()
    expect(page.get_by_role("cell", name=names.tested("cross_entropy"))).to_be_visible()
    page.get_by_role("link", name=f"promotion of {MODEL}").first.click()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text(names.GATES_FILE, exact=True).first.click()
    expect(page.get_by_text("there is no champion yet").first).to_be_visible()


def test_the_report_opens_among_the_artifacts_of_the_study_s_run(
    page: Page, server: Server, trials: list[Run], pictures: Path
) -> None:
    study, experiment = trials[0].data.tags[names.PARENT], trials[0].info.experiment_id
    page.goto(f"{server.url}#/experiments/{experiment}/runs/{study}/artifacts/report.html")
    report = page.frame_locator("iframe")
    expect(report.get_by_role("heading", name="History of the search")).to_be_visible()
    expect(report.locator("html[data-drawn]")).to_be_attached()
    assert report.locator("[data-figure=history] .points path").count() >= TRIALS / 2
    page.screenshot(path=pictures / "mlflow-report.png")
