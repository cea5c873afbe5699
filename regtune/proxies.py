"""Proxies: what is on this machine is reached without one, by this process and by those that it starts."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")
"""Libraries differ in how they write an address of IPv6."""


def bypass_proxies(url: str = "") -> None:
    """Add this machine's addresses to NO_PROXY where the environment names a proxy.

    url: a server's; its host is added too where that is this machine's name.
    """
    if all(name.lower() == "no_proxy" for name in os.environ if name.lower().endswith("_proxy")):
        return
    known = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    if known.strip() == "*":
        return
    import psutil

    found = [part.strip() for part in known.split(",") if part.strip()] + list(LOOPBACK)
    for address in (one for card in psutil.net_if_addrs().values() for one in card):
        if address.family in (socket.AF_INET, socket.AF_INET6):
            bare = address.address.partition("%")[0]
            found += [bare, f"[{bare}]"] if ":" in bare else [bare]
    host, name = urlsplit(url).hostname or "", socket.gethostname().lower()
    found += [host] if host and host in (name, name.partition(".")[0]) else []
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys(found))
