"""Host names in the one form in which they are compared and connected to.

Pure text processing: it resolves nothing.
"""

from __future__ import annotations

import re

__all__ = ["is_numeric_host", "normalize_host", "normalize_host_entry"]


def normalize_host(host: str) -> str:
    """A host name in lower-case ASCII (IDNA) without the trailing dot; "" if it is invalid."""
    try:
        name = host.encode("idna").decode("ascii").lower()
    except UnicodeError:
        return ""
    name = name.removesuffix(".")
    return name if re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", name) else ""


def normalize_host_entry(entry: str) -> str:
    """An entry of a host list, with its port unless that is 443; ValueError if it is invalid."""
    host, colon, port = entry.partition(":")
    name = normalize_host(host)
    valid_port = port.isdecimal() and 0 < int(port) < 65536
    if not name or is_numeric_host(name) or (colon and not valid_port):
        raise ValueError(f"{entry!r} is not a host name")
    return f"{name}:{int(port)}" if port and int(port) != 443 else name


def is_numeric_host(host: str) -> bool:
    """Whether systems read it as an IPv4 address: 127.0.0.1, 127.1, 0x7f000001, 017700000001."""
    return re.fullmatch(r"[0-9]+|0x[0-9a-f]*", host.rpartition(".")[2]) is not None
