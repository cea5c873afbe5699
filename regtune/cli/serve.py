"""The verbs of the tracking server in the background: up, down, status."""

from __future__ import annotations

from typing import Annotated

import typer

from regtune.cli import options, terminal
from regtune.errors import InputError, SettingsError

PANEL = "Serve"


def up(
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="URL",
            help="Server for --postgres: postgresql+psycopg://USER@HOST/NAME; default: one of this folder's own.",
        ),
    ] = None,
    *,
    sqlite: Annotated[bool, typer.Option("--sqlite", help="Use the folder's SQLite files.")] = False,
    postgres: Annotated[bool, typer.Option("--postgres", help="Use PostgreSQL.")] = False,
    port: options.Port = None,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Address to bind to; other machines than this one need an account.",
            show_default="127.0.0.1",
        ),
    ] = None,
    auth: options.Auth = None,
    quiet: options.Quiet = False,
    home: options.Home = None,
) -> None:
    """Start this folder's MLflow server in the background, or print its address."""
    from regtune.credentials import in_url
    from regtune.server.service import up as start
    from regtune.settings import IN_NO_URL
    from regtune.tracking.page import tell_newest

    if url and in_url(url):
        raise SettingsError(f"--postgres: {IN_NO_URL}")
    if sqlite and postgres:
        raise InputError("--sqlite and --postgres: choose one")
    if url and not postgres:
        raise InputError(f"{url}: expected --postgres before a PostgreSQL server: --postgres {url}")
    databases = "sqlite" if sqlite else (url or "postgres") if postgres else None

    def tell(line: str) -> None:
        terminal.say(line, quiet)

    settings = terminal.settings_of(home)
    service = start(settings, databases=databases, port=port, host=host, auth=auth, tell=tell)
    tell_newest(service.url, tell)


def down(quiet: options.Quiet = False, home: options.Home = None) -> None:
    """Stop what `up` has started."""
    from regtune.server.service import down as end

    notes: list[str] = []
    with terminal.working("stopping the server", quiet):
        ended = end(terminal.settings_of(home), notes.append)
    for note in notes:
        terminal.say(note, quiet)
    terminal.say("Stopped." if ended else "Nothing is running here.", quiet)


def status(as_json: options.Json = False, home: options.Home = None) -> None:
    """Show this folder's server, databases, disk and running sweeps."""
    from regtune.cli.views.reports import status_view
    from regtune.upkeep.status import look

    with terminal.working("checking the server and the databases"):
        standing = look(terminal.settings_of(home))
    terminal.present(standing, status_view, as_json)


VERBS = (up, down, status)
