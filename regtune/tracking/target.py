"""Where a sweep's runs are written: a server that is named, this folder's own server while it runs, or the store."""

from __future__ import annotations

from dataclasses import dataclass

from regtune.credentials import authorization
from regtune.server.service import running
from regtune.settings import Settings
from regtune.storage.mlflow import is_server


@dataclass(frozen=True)
class Target:
    """Where runs go.

    uri: of a tracking server or a database. place: URI of the artifact folder that a new experiment gets; None leaves
    it to the server. This folder's own server and its store share one place, so that a run made through one is read
    through the other.
    """

    uri: str
    place: str | None


def target_of(settings: Settings) -> Target:
    """MLFLOW_TRACKING_URI where it is set, else this folder's server while it runs, else its store.

    A server that asks for an account is passed by when no credentials are given. Raises SettingsError.
    """
    place = (settings.artifacts / "runs").as_uri()
    if settings.tracking_uri:
        return Target(settings.tracking_uri, None if is_server(settings.tracking_uri) else place)
    found = running(settings)
    if found is not None and (not found.auth or authorization()):
        return Target(found.url, place)
    return Target(settings.mlflow_uri, place)
