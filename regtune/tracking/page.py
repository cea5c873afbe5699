"""The MLflow page of a folder: served until Ctrl-C, or opened where a server serves it already."""

from __future__ import annotations

import os
import signal
import sys
import threading
import webbrowser
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException

from regtune.errors import TrackingError
from regtune.executors.worker import MODEL_FILE
from regtune.server.accounts import wants_accounts
from regtune.server.process import DEFAULT_HOST, check_port, last_line, notices, serving
from regtune.server.service import running, usual_port
from regtune.settings import Settings
from regtune.storage import is_sqlite, open_engine
from regtune.storage.mlflow import check_uri, is_server, search, tracking_schema, trouble
from regtune.study.progress import StudyInfo
from regtune.tracking import names
from regtune.tracking.store import target_of
from regtune.tracking.views import runs_path

_TELL = partial(print, flush=True)
PAGE_SECONDS = 30.0
SECONDS = 3.0
"""How long a verb that has shown what it was asked for waits for a link."""


def serve_ui(
    settings: Settings,
    port: int | None = None,
    host: str = DEFAULT_HOST,
    open_browser: bool = True,
    tell: Callable[[str], None] = _TELL,
    auth: bool | None = None,
) -> None:
    """Show the MLflow page until Ctrl-C: tell its address, open it in a browser where there is one.

    port: the folder's usual one by default. auth: whether the page asks for an account; by default where other
    machines reach it.
    A store that is a server already, and one whose server runs in the background, is only named, and opened if MLflow
    answers there. To be called from the main thread. Raises TrackingError, and InputError for what would let strangers
    in, and NoStudies where neither a study nor a store is there to be shown.
    """
    uri, service = settings.mlflow_uri, running(settings)
    check_uri(uri)
    if is_server(uri):
        wrong = trouble(uri)
        tell(f"MLflow: {uri}{f' {wrong}' if wrong else ''}")
        if not wrong:
            _show(uri, tell, open_browser)
        return
    if service is not None:
        tell(f"MLflow: {service.url}, which regtune up has started")
        _show(service.url, tell, open_browser)
        return
    accounts = wants_accounts(host, auth)
    port = port or usual_port(settings)
    check_port(host, port)
    if is_sqlite(uri) and tracking_schema(uri).blank:
        open_engine(settings.storage_url).dispose()
    stop = threading.Event()
    with ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: stop.set()))
        with suppress(KeyboardInterrupt), serving(settings, port, host, stop, accounts) as server:
            tell(f"MLflow: {server.url}  (Ctrl-C stops it)")
            for line in notices(host, accounts):
                tell(line)
            _show(server.url, tell, open_browser)
            while server.process.poll() is None and not stop.wait(0.5):
                pass
            if not stop.is_set():
                raise TrackingError(f"the MLflow server has ended by itself: {last_line(server.log)}")


def tell_newest(url: str, tell: Callable[[str], None]) -> str | None:
    """Tell the page of the newest sweep on the server `url`, if there is one; returns it."""
    newest = trials_page(url)
    if newest is not None:
        tell(f"The newest sweep's trials, best first: {newest}")
    return newest


def trials_page(url: str, sweep: str | None = None, seconds: float = PAGE_SECONDS) -> str | None:
    """The page of a sweep's trials on the server `url`, by default of the sweep that was begun last.

    The server's own first page is about other things. None when there is no such sweep, or no answer.
    """
    which = "LIKE '%'" if sweep is None else f"= '{sweep}'"
    asked = {"filter": f"tags.`{names.SWEEP}` {which}", "order_by": ["creation_time DESC"], "max_results": 1}
    try:
        found = search(url, "experiments", asked, seconds)
    except (OSError, ValueError, HTTPException):  # the page itself will say what is wrong with the store
        return None
    return url.rstrip("/") + runs_path(found[0]["experiment_id"]) if found else None


@dataclass(frozen=True)
class Where:
    """Where a trial's things are. model: file of its network, None where none was kept. mlflow: its run."""

    model: str | None
    mlflow: str


def where(settings: Settings, info: StudyInfo, trial_uid: str) -> Where:
    """Say where a trial's kept model lies, and where a person sees its run."""
    file = settings.artifacts / "trials" / trial_uid / MODEL_FILE
    sweep = str(info.spec.get("name", info.name))
    return Where(str(file) if file.is_file() else None, run_page(settings, sweep, trial_uid))


def run_page(settings: Settings, sweep: str, trial_uid: str) -> str:
    """A run's page, or the command that shows the store.

    The server's own address where it does not answer, or does not know the trial.
    """
    url = target_of(settings)
    if not is_server(url):
        return "regtune ui"
    asked = {"filter": f"tags.`{names.SWEEP}` = '{sweep}'", "max_results": 100}
    try:
        experiments = [found["experiment_id"] for found in search(url, "experiments", asked, SECONDS)]
        tagged = f"tags.`{names.TRIAL_UID}` = '{trial_uid}'"
        asked = {"experiment_ids": experiments, "filter": tagged, "max_results": 1}
        info = search(url, "runs", asked, SECONDS)[0]["info"] if experiments else None
    except (OSError, ValueError, LookupError, HTTPException):
        return url
    path = info and f"/#/experiments/{info['experiment_id']}/runs/{info['run_id']}"
    return url.rstrip("/") + path if path else url


def _show(url: str, tell: Callable[[str], None], browse: bool) -> None:
    """Open a window, where there are windows: a text browser would take the terminal."""
    page = tell_newest(url, tell) or url
    if browse and (
        sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        webbrowser.open(page)
