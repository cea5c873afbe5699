"""The README and the pages of docs/: generated parts are up to date, commands parse, examples run, links work."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from docs.generate import stale, verbs
from docs.images import draw_bars
from regtune.config.sweepfile import SweepSpec
from regtune.config.sweepfile.specification import json_schema
from regtune.errors import SpecError

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
PAGES = {
    name: (ROOT / name).read_text()
    for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", *DOCS)
}
README = PAGES["README.md"]
VERBS = dict(verbs())
TARGETS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M))
PROGRAMS = {
    *("bash", "chmod", "curl", "docker", "git", "kill", "make", "mkdir", "mlflow", "pip", "regtune"),
    *("kubectl", "ray", "sbatch", "source"),
}


def block(page: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGES[page], re.S)
    assert found is not None
    return found[1]


def commands(text: str) -> Iterator[tuple[bool, list[str]]]:
    """The words of every command in a page, and whether it is whole.

    Whole are indented lines and `sh` blocks; a span that begins with `regtune` or `make` may leave arguments out.
    """
    fenced = re.findall(r"```(\w*)\n(.*?)```", text, re.S)
    plain = re.sub(r"```.*?```", "", text, flags=re.S)
    lines = [line for language, lines in fenced if language == "sh" for line in lines.splitlines()]
    lines += re.findall(r"^    (\S.*)$", plain, re.M)
    spans = re.findall(r"`((?:regtune|make) [^`]+)`", plain)
    for whole, line in [*((True, line) for line in lines), *((False, span) for span in spans)]:
        for command in line.split("&&"):
            words = shlex.split(re.split(r" [<>] ", command)[0], comments=True)
            if words:
                yield whole, words


def problem(whole: bool, words: list[str]) -> str | None:
    """Why regtune or make would refuse a command; None where it would not, and for other programs."""
    program, *rest = words
    if program not in PROGRAMS:
        return f"{program} is none of {', '.join(sorted(PROGRAMS))}"
    if program == "make":
        unknown = {word for word in rest if "=" not in word} - TARGETS
        return f"no target {', '.join(unknown)}" if unknown else None
    if program == "docker" and "run" in rest and "--entrypoint" not in rest:
        rest = rest[next(place for place, word in enumerate(rest) if word in ("worker", "init")) + 1 :]
    elif program != "regtune" or rest[0] == "VERB":
        return None
    name = " ".join(rest[:2]) if " ".join(rest[:2]) in VERBS else rest[0]
    if name not in VERBS:
        return f"no verb {name}"
    command: Any = VERBS[name]
    context = command.make_context(name, [], resilient_parsing=True)
    try:
        given, extra, _ = command.make_parser(context).parse_args(rest[len(name.split()) :])
    except Exception as error:
        return str(error)
    required = [found.name for found in command.params if whole and found.required]
    missing = [name for name in required if not given.get(name)]
    return f"{extra} too much, {missing} missing" if extra or missing else None


def test_generated_parts_are_up_to_date() -> None:
    assert not stale(), "run: .venv/bin/python docs/generate.py"


@pytest.mark.parametrize("name", draw_bars.DRAWN)
def test_a_chart_is_that_of_its_committed_result(name: str) -> None:
    said = (draw_bars.FOLDER / f"{name}.svg").read_text()
    assert said == draw_bars.drawn(name), "run: .venv/bin/python docs/images/draw_bars.py"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_the_program_takes(page: str) -> None:
    refused = {shlex.join(words): problem(whole, words) for whole, words in commands(PAGES[page])}
    assert not {words: why for words, why in refused.items() if why}


def test_a_command_that_would_be_refused_is_noticed() -> None:
    spans = ("`regtune bord x`", "`make swep`", "    regtune best x --outptu y\n", "    regtune show\n")
    lines = ("regtune show a 1 2", "make sweep && rm x", "docker compose run worker bord")
    for text in (*spans, *(f"```sh\n{line}\n```" for line in lines)):
        assert any(problem(*command) for command in commands(text)), text


@pytest.mark.parametrize("page", ["README.md", "docs/sweep-file.md"])
def test_the_example_of_a_sweep_file_is_the_one_in_sweeps_and_the_error_that_is_quoted_is_given(
    page: str,
) -> None:
    example = Path("mine.yaml")
    example.write_text(block(page, "yaml"))
    assert SweepSpec.load(example) == SweepSpec.load(ROOT / "sweeps/mnist.yaml")
    quoted = re.search(r"sweeps/mine\.yaml:\d+: (parameters\.drop_out: [^`\n]*)", PAGES[page])
    assert quoted is not None
    example.write_text(block(page, "yaml").replace("dropout:  ", "drop_out: "))
    with pytest.raises(SpecError, match=re.escape(quoted[1])):
        SweepSpec.load(example)


def test_every_distribution_is_explained() -> None:
    words = set(re.findall(r"'(\w*uniform\w*)'", str(json_schema())))
    assert len(words) == 5
    assert words <= set(re.findall(r"\w+", PAGES["docs/sweep-file.md"]))


def test_the_readme_is_short_names_every_verb_and_the_tests_and_links_in_it_are_there() -> None:
    assert {name.split()[0] for name in VERBS} <= set(re.findall(r"\w+", README))
    assert len(README.splitlines()) <= 170
    names = re.findall(r"`(?:pytest tests/)?(test_\w+\.py)`", README)
    assert len(names) == 10
    assert all(any((ROOT / "tests").rglob(name)) for name in names)
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 8
    assert all((ROOT / link).exists() for link in links)


def test_the_site_is_built_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site")))
    pages = list((tmp_path / "site").glob("*.html"))
    assert len(pages) > 10
    html = "".join(page.read_text() for page in pages)
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+https?:[^>]*>", html)


REGISTERED = """
from regtune.data.datasets import load_arrays
from regtune.settings import Settings
from versions import register_version

register_version(Settings(), "quickstart")
images = load_arrays("mnist-5k").x_test[:5].reshape(-1, 28, 28)
"""
"""What a promotion leaves for the second example."""


@pytest.mark.slow
def test_the_python_example_runs() -> None:
    (Path("sweeps")).mkdir()
    Path("sweeps/quickstart.yaml").write_text((ROOT / "sweeps/quickstart.yaml").read_text())
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    study, production = re.findall(r"```python\n(.*?)```", PAGES["docs/python.md"], re.S)
    example = [sys.executable, "-c", f"{study}{REGISTERED}{production}"]
    done = subprocess.run(example, env=environment, check=True, capture_output=True, text=True)
    assert len(done.stdout.splitlines()) > 9
    assert Path("model.keras").exists()


@pytest.mark.parametrize(
    ("name", "room"),
    [
        ("build_model", "training"),
        ("load_best", "registry"),
        ("load_champion", "registry"),
        ("load_data", "data"),
        ("open_study", "evidence"),
        ("run_sweep", "evidence"),
        ("train", "training"),
    ],
)
def test_a_public_function_describes_what_it_takes_returns_and_raises(name: str, room: str) -> None:
    sources = "".join(path.read_text() for path in (ROOT / "regtune" / room).glob("*.py"))
    described = sources.split(f"\ndef {name}(")[1].split('"""')[1].replace("\n    ", "\n")
    assert all(f"\n{section}:\n" in described for section in ("Args", "Returns", "Raises", "Example"))


def test_a_python_that_is_too_old_is_said_with_what_to_do() -> None:
    Path("Makefile").write_text((ROOT / "Makefile").read_text())
    old = Path("python3.10")
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.10.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    command = ["make", ".venv/.made", f"PYTHON={old.resolve()}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "regtune needs Python 3.11, 3.12 or 3.13" in done.stderr
    assert "python3.10 is Python 3.10.1" in done.stderr
    assert not Path(".venv").exists()
