"""The report in a real Chromium: it draws every chart, loads nothing, and can be used by everyone.

With REGTUNE_SCREENSHOTS set, its pictures go to that folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from exports import STUDY, study_at
from parts import chromium
from playwright.sync_api import Browser, Page, sync_playwright

from regtune.evidence.export import export_of
from regtune.evidence.report import page_of, page_of_two

pytestmark = pytest.mark.browser

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"),
    *("--disable-component-update", "--no-first-run", "--enable-unsafe-swiftshader"),
]
DRAWN = "document.documentElement.dataset.drawn"
EMPTY = """() => [...document.querySelectorAll(".plot")].filter((plot) => {
  const lines = plot.querySelector(".gl-canvas-context");
  if (!lines) return !plot.querySelector(".points path, .lines path, .point path");
  const copy = Object.assign(document.createElement("canvas"), { width: lines.width, height: lines.height });
  const flat = copy.getContext("2d");
  flat.drawImage(lines, 0, 0);
  return !flat.getImageData(0, 0, copy.width, copy.height).data.some((value) => value !== 0);
}).map((plot) => plot.dataset.figure)"""
"""The charts without a point, a bar, or a line that is painted."""
WIDTHS = (1440, 768, 390)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of a decided study, of one that is not, and of both."""
    folder = tmp_path_factory.mktemp("pages")
    decided = export_of(study_at(folder / "decided"), STUDY)
    bare = export_of(study_at(folder / "bare", name="bare", decided=False), "bare")
    texts = {"decided": page_of(decided), "bare": page_of(bare), "two": page_of_two(decided, bare)}
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text)
    return {name: folder / f"{name}.html" for name in texts}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(os.environ.get("REGTUNE_SCREENSHOTS") or tmp_path_factory.mktemp("pictures"))


def opened(browser: Browser, path: Path, theme: str, said: list[str]) -> Page:
    """A page with all charts drawn; errors, and requests for anything else, go to `said`."""
    size = {"width": WIDTHS[0], "height": 1000}
    page = browser.new_page(viewport=size, color_scheme=theme)  # type: ignore[arg-type]
    own = path.as_uri()
    page.on("console", lambda message: message.type == "error" and said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request",
        lambda request: request.url.startswith((own, "data:", "blob:")) or said.append(request.url),
    )
    page.goto(own)
    page.wait_for_function(DRAWN)
    return page


@pytest.mark.parametrize(
    ("name", "theme"), [("decided", "light"), ("decided", "dark"), ("bare", "light"), ("two", "dark")]
)
def test_every_chart_is_drawn_nothing_is_loaded_nothing_is_too_wide_and_axe_finds_nothing(
    browser: Browser, pages: dict[str, Path], pictures: Path, name: str, theme: str
) -> None:
    said = list[str]()
    page = opened(browser, pages[name], theme, said)
    charts = page.locator(".plot").count()
    assert charts == int(page.evaluate(DRAWN))
    assert charts >= {"decided": 20, "bare": 8, "two": 2}[name]
    drawn = (
        "() => [...document.querySelectorAll('.plot')].every((plot) => plot.drawnWidth === plot.clientWidth)"
    )
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_function(drawn)
        assert page.evaluate(EMPTY) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=pictures / f"report-{name}-{theme}-{width}.png", full_page=True)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.close()
    assert said == []


def test_the_keyboard_reaches_everything_chooses_the_theme_and_a_range_and_paper_is_light(
    browser: Browser, pages: dict[str, Path]
) -> None:
    said = list[str]()
    page = opened(browser, pages["decided"], "light", said)
    text = "getComputedStyle(document.querySelector('[data-figure=history] .xtick text')).fill"
    light = page.evaluate(text)
    page.get_by_role("button", name="Dark theme").press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate(text) != light
    page.locator("#filters summary").press("Enter")
    for _ in range(8):
        page.get_by_label("dropout to").press("PageDown")
    kept = page.locator("#kept").text_content() or ""
    shown = page.locator("#trials tbody tr:not([hidden])")
    count = shown.count()
    assert 0 < count < 7
    assert kept.startswith(f"{count} of 7 trials are kept: ")
    for _ in range(8):
        page.get_by_label("dropout to").press("PageUp")
    assert page.locator("#kept").text_content() == ""
    assert shown.count() == 11
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    wanted = page.evaluate("document.querySelectorAll('a, button, input, summary, [tabindex=\"0\"]').length")
    page.evaluate("document.activeElement.blur(); getSelection().removeAllRanges(); scrollTo(0, 0)")
    page.locator("body").press("Home")
    outlines = set[str]()
    for _ in range(wanted + 2):
        page.keyboard.press("Tab")
        outlines.add(
            page.evaluate(
                "(() => { const at = document.activeElement; if (at === document.body) return 'solid 3px';"
                "at.dataset.reached = ''; const style = getComputedStyle(at);"
                "return `${style.outlineStyle} ${style.outlineWidth}`; })()"
            )
        )
    assert outlines == {"solid 3px"}
    assert page.evaluate("document.querySelectorAll('[data-reached]').length") == wanted
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    widest = "Math.max(...[...document.querySelectorAll('.plot .main-svg')].map((one) => one.clientWidth))"
    assert page.evaluate(widest) <= 680
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.close()
    assert said == []
