"""The pairs of stores on which a fault is tried: the first that its test names, all of them with `--whole`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Project, project
from stores import PAIRS


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Project]:
    """A new project, on SQLite written directly unless the test asks for others."""
    pair = getattr(request, "param", "sqlite")
    server = request.getfixturevalue("postgres_server") if "postgres" in pair else None
    with project(pair, tmp_path, server) as found:
        yield found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that is marked `pairs` its stores."""
    marker = metafunc.definition.get_closest_marker("pairs")
    if marker and "place" in metafunc.fixturenames:
        wanted = marker.args or PAIRS
        metafunc.parametrize(
            "place", wanted if metafunc.config.getoption("--whole") else wanted[:1], indirect=True
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what is marked `whole` to `make faults`."""
    if not config.getoption("--whole"):
        left = [item for item in items if item.get_closest_marker("whole")]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


@pytest.fixture
def whole(request: pytest.FixtureRequest) -> bool:
    """Whether nothing is to be shortened."""
    return bool(request.config.getoption("--whole"))
