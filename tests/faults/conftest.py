"""Stores on which a fault is tried: the first pair that its test names; in `make proofs` the others, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from places import Place, place_on

from regtune.server import service


@pytest.fixture(scope="session")
def shared_places(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Place]]:
    """A place for each pair of stores, made when it is first asked for."""
    places: dict[str, Place] = {}
    with ExitStack() as stack:

        def shared(pair: str) -> Place:
            if pair not in places:
                server = request.getfixturevalue("postgres_server") if "postgres" in pair else None
                places[pair] = stack.enter_context(place_on(pair, tmp_path_factory.mktemp(pair), server))
            return places[pair]

        yield shared


@pytest.fixture
def place(request: pytest.FixtureRequest, shared_places: Callable[[str], Place]) -> Place:
    """A shared place on the pair of stores that the test names, for a study of its own."""
    shared = shared_places(request.param)
    if shared.port and not service.processes(shared.home):  # a test before has failed with the server down
        shared.up()
    return shared.with_new_study()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slow)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("pairs")
    if marker and "place" in metafunc.fixturenames:
        first, *others = marker.args
        proofs = (pytest.param(pair, marks=pytest.mark.proof) for pair in others)
        metafunc.parametrize("place", (first, *proofs), indirect=True)
