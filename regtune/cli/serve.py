"""The verbs of the tracking server in the background: up, down, status."""

from __future__ import annotations

from typing import Annotated

import typer

from regtune.cli.terminal import (
    AuthOption,
    HomeOption,
    JsonOption,
    PortOption,
    QuietOption,
    Verb,
    say,
    settings_of,
    show,
    show_json,
    working,
)

PANEL = "Serve"


def register(app: typer.Typer) -> None:
    """Add the verbs to `app`."""
    for verb in (up, down, status):
        app.command(verb.__name__, cls=Verb, rich_help_panel=PANEL)(verb)


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
    port: PortOption = None,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Address to bind to; other machines than this one need an account.",
            show_default="127.0.0.1",
        ),
    ] = None,
    auth: AuthOption = None,
    quiet: QuietOption = False,
    home: HomeOption = None,
) -> None:
    """Start this folder's MLflow server in the background, or print its address."""
    from regtune.credentials import in_url
    from regtune.errors import InputError, SettingsError
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
    service = start(
        settings_of(home),
        databases=databases,
        port=port,
        host=host,
        auth=auth,
        tell=lambda line: say(line, quiet),
    )
    tell_newest(service.url, lambda line: say(line, quiet))


def down(quiet: QuietOption = False, home: HomeOption = None) -> None:
    """Stop what `up` has started."""
    from regtune.server.service import down as end

    notes: list[str] = []
    with working("stopping the server", quiet):
        ended = end(settings_of(home), notes.append)
    for note in notes:
        say(note, quiet)
    say("Stopped." if ended else "Nothing is running here.", quiet)


def status(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Show this folder's server, databases, disk and running sweeps."""
    from regtune.cli.views.reports import status_view
    from regtune.upkeep.status import look

    with working("checking the server and the databases"):
        standing = look(settings_of(home))
    show_json(standing.to_json()) if as_json else show(status_view(standing))
