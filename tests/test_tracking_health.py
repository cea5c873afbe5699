"""Who answers at a tracking server's address: MLflow, somebody else, or nobody."""

from __future__ import annotations

import pytest
from stores import free_port
from strangers import silent, stranger

from regtune.errors import TrackingError
from regtune.settings import Settings
from regtune.storage.mlflow import connect, trouble
from regtune.tracking import Tracker
from regtune.upkeep.doctor import examine
from regtune.upkeep.status import look

OTHERWISE = "does not answer as MLflow does"


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (403, "", "text/html", f"{OTHERWISE} (HTTP 403)"),
        (403, "Invalid Host header", "text/plain", f"{OTHERWISE} (HTTP 403: Invalid Host header)"),
        (502, "<html>proxy</html>", "text/html", f"{OTHERWISE} (HTTP 502)"),
        (200, "<html>hello</html>", "text/html", OTHERWISE),
        (200, '{"status": "ok"}', "application/json", OTHERWISE),
        (200, "{}", "application/json", ""),
        (401, "You are not authenticated.", "text/html", ""),
        (500, '{"error_code": "INTERNAL_ERROR"}', "application/json", ""),
    ],
)
def test_who_answers_otherwise_than_mlflow_is_told_from_it(
    status: int, body: str, kind: str, said: str
) -> None:
    with stranger(status, body, kind) as url:
        assert trouble(url) == said


def test_a_port_that_never_answers_and_one_that_nobody_listens_at_are_told() -> None:
    with silent() as url:
        assert trouble(url, 0.2).startswith("does not answer within ")
    assert trouble(f"http://127.0.0.1:{free_port()}") == "cannot be reached (Connection refused)"


def test_where_mlflows_client_signs_in_by_itself_it_alone_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_AWS_SIGV4", "true")
    with stranger(403) as url:
        assert trouble(url) == ""


def test_a_stranger_is_said_first_of_all_by_a_sweep_and_found_by_doctor_and_status() -> None:
    with stranger(403) as url:
        settings = Settings(MLFLOW_TRACKING_URI=url)
        tracker = Tracker(settings, "mnist-regularization")
        away = "MLflow is away; the sweep continues, and MLflow catches up later"
        assert tracker.news() == [f"{url} {OTHERWISE} (HTTP 403): {away}"]
        tracker.close(0)
        (found,) = (check for check in examine(settings) if check.name == "MLflow")
        assert (found.status, found.found) == ("mend", f"{url} {OTHERWISE} (HTTP 403)")
        assert look(settings).server.problem == f"{OTHERWISE} (HTTP 403)"
        with pytest.raises(TrackingError, match=rf"^MLflow at {url} {OTHERWISE} \(HTTP 403\)$"):
            connect(url, settings.artifacts)
