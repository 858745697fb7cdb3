"""Names of hosts, in the one form in which they are compared and dialled.

Pure text: nothing is resolved here.
"""

from __future__ import annotations

import re

__all__ = ["folded", "folded_entry", "is_number"]


def folded(host: str) -> str:
    """A host's name in lower case, in ASCII, without the last dot; "" for what is no name."""
    try:
        name = host.encode("idna").decode("ascii").lower()
    except UnicodeError:
        return ""
    name = name.removesuffix(".")
    return name if re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", name) else ""


def folded_entry(entry: str) -> str:
    """An entry of a list of hosts, with its port if that is not 443; ValueError for no name."""
    host, colon, port = entry.partition(":")
    name = folded(host)
    if not name or is_number(name) or (colon and not (port.isdecimal() and 0 < int(port) < 65536)):
        raise ValueError(f"{entry!r} is no name of a host")
    return f"{name}:{int(port)}" if port and int(port) != 443 else name


def is_number(host: str) -> bool:
    """Whether systems read it as an IPv4 address: 127.0.0.1, 127.1, 0x7f000001, 017700000001."""
    return re.fullmatch(r"[0-9]+|0x[0-9a-f]*", host.rpartition(".")[2]) is not None
