"""Draw the README's picture of the report from an export: the answer, and the decision below it.

    regtune report STUDY --json > export.json
    python docs/images/draw_report.py export.json

The picture is 1440 pixels wide and ends below the chart of the decision; it needs Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from regtune.evidence.export import load_export
from regtune.evidence.report import page_of

FOLDER = Path(__file__).resolve().parent
WIDTH = 1440
BELOW = 12
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader"]


def main() -> None:
    """Draw the page, open it, and take its upper part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path)
    parser.add_argument("--output", type=Path, default=FOLDER / "report.png")
    parser.add_argument("--theme", choices=["light", "dark"], default="light")
    parser.add_argument(
        "--until", default="[data-figure=decision]", help="selector of what the picture ends with"
    )
    given = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "report.html"
        path.write_text(page_of(load_export(given.export)), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": WIDTH, "height": 1000}, color_scheme=given.theme)
        page.goto(path.as_uri())
        page.wait_for_function("document.documentElement.dataset.drawn")
        box = page.locator(given.until).first.bounding_box()
        assert box is not None, f"{given.until} is not on the page"
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": box["y"] + box["height"] + BELOW}
        page.screenshot(path=given.output, full_page=True, clip=clip)
        browser.close()
    print(f"{given.output}: {WIDTH} x {clip['height']:.0f}")


if __name__ == "__main__":
    main()
