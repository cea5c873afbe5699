"""A quick check whether MLflow answers at a server's address, without MLflow's own client."""

from __future__ import annotations

import json
import os
import ssl
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from regtune.credentials import authorization
from regtune.processes import bypass_proxies

SECONDS = 5.0
LONGEST_ANSWER = 2**20
LONGEST_REASON = 100
OWN_SIGNATURES = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_TRACKING_CLIENT_CERT_PATH")
"""Ways to sign in that only MLflow's client has; where one is set, the client alone can tell who answers."""


def search_experiments(url: str, asked: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The answer of the server at `url` to MLflow's search for experiments.

    Raises OSError, ValueError and HTTPException, HTTPError among them, when it does not answer as MLflow does.
    """
    request = urllib.request.Request(  # noqa: S310
        f"{url.rstrip('/')}/api/2.0/mlflow/experiments/search",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json", **authorization()},
    )
    with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310
        found = json.loads(answer.read(LONGEST_ANSWER))
    if not isinstance(found, dict) or not found.keys() <= {"experiments", "next_page_token"}:
        raise ValueError("not MLflow's answer")
    return found


def trouble(url: str, seconds: float = SECONDS) -> str:
    """What is wrong with who answers at `url`, as the predicate of a sentence; empty where it can be MLflow."""
    if any(os.environ.get(name) for name in OWN_SIGNATURES):
        return ""
    bypass_proxies(url)
    try:
        search_experiments(url, {"max_results": 1}, seconds)
    except urllib.error.HTTPError as error:
        return _refusal(error)
    except (OSError, ValueError, HTTPException) as error:
        return _failure(error, seconds)
    return ""


def _failure(error: Exception, seconds: float) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):  # MLflow's client may know the authority
        return ""
    if isinstance(reason, TimeoutError):
        return f"does not answer within {seconds:.0f} s"
    if reason is error or isinstance(reason, ssl.SSLError):
        return "does not answer as MLflow does"
    return f"cannot be reached ({getattr(reason, 'strerror', None) or reason})"


def _refusal(error: urllib.error.HTTPError) -> str:
    """MLflow's own errors are JSON with a code; what asks for an account may be MLflow."""
    try:
        said = error.read(LONGEST_ANSWER).decode(errors="replace")
    except (OSError, HTTPException):
        said = ""
    if error.code == 401 or '"error_code"' in said:
        return ""
    plain = error.headers.get_content_type() == "text/plain" and " ".join(said.split())[:LONGEST_REASON]
    return f"does not answer as MLflow does (HTTP {error.code}{f': {plain}' if plain else ''})"
