"""Proxies: this machine is reached without one, whatever the environment says, and the rest as the environment says."""

from __future__ import annotations

import socket
import urllib.request

import psutil
import pytest
from requests.utils import should_bypass_proxies
from stores import free_port

from regtune.processes import bypass_proxies


@pytest.fixture(autouse=True)
def _proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that nobody listens at, and no exceptions."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("http_proxy", raising=False)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")


def direct(host: str) -> bool:
    """Whether both Python's library and requests, which MLflow uses, reach `host` without a proxy."""
    found = {
        bool(urllib.request.proxy_bypass(host)),
        bool(should_bypass_proxies(f"http://{host}:5000", None)),
    }
    assert len(found) == 1, host
    return found == {True}


def test_what_is_on_this_machine_is_reached_without_a_proxy() -> None:
    addresses = {
        one.address for card in psutil.net_if_addrs().values() for one in card if one.family == socket.AF_INET
    }
    for host in ("localhost", "127.0.0.1", "[::1]", *addresses):
        assert not direct(host)
    bypass_proxies()
    for host in ("localhost", "127.0.0.1", "[::1]", socket.gethostname(), *addresses):
        assert direct(host)
    assert not direct("example.org")


def test_what_a_person_has_excepted_stays_excepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "example.org, .example.net")
    bypass_proxies()
    bypass_proxies()
    assert direct("example.org")
    assert direct("127.0.0.1")
    assert not direct("example.com")
    monkeypatch.setenv("no_proxy", "*")
    bypass_proxies()
    assert direct("example.com")
