"""Who can read what is sent to an address."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def stays_here(host: str | None) -> bool:
    """Whether only processes of this machine can be meant."""
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"


def in_the_clear(url: str) -> bool:
    """Whether what is sent there, a token for instance, crosses a network as it is."""
    address = urlsplit(url)
    return address.scheme == "http" and not stays_here(address.hostname)
