"""Under which names a server may be asked for."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable

from kd_jax.runtime.errors import UserError

_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")


class Names:
    """The hosts that a request may name.

    A page from elsewhere can have its own name lead to this server and so read what is answered
    here (DNS rebinding). It cannot do that with an address, so any address may be named; but where
    only this machine is listened to, only an address of this machine.
    """

    def __init__(self, address: str, others: Iterable[str] = ()):
        """List the names.

        Args:
          address: that is listened on.
          others: names, such as that of a proxy; see `given`.
        """
        self.is_local = is_loopback(address)
        own = () if self.is_local else (socket.gethostname(),)
        self._names = {_plain(name) for name in ("localhost", *own, *others)}

    def __contains__(self, host: object) -> bool:
        name = _plain(_without_port(str(host)))
        if _address(name) is None:
            return name in self._names
        return not self.is_local or is_loopback(name)


def given(text: str | None) -> tuple[str, ...]:
    """Return the names in a list with commas.

    Raises:
      UserError: one is no name of a host.
    """
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    for name in names:
        if not _NAME.fullmatch(_plain(name)):
            raise UserError(
                f"--names={text}: {name!r} is not the name of a host: expected names with commas "
                "between them, without http:// and without a port, such as student.example.org"
            )
    return names


def is_loopback(address: str) -> bool:
    """Tell whether only this machine can reach an address: 127.0.0.1 to 127.255.255.254, or ::1."""
    found = _address(address)
    mapped = getattr(found, "ipv4_mapped", None)  # an address of IPv4 in one of IPv6
    return found is not None and (mapped or found).is_loopback


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _plain(name: str) -> str:
    return name.lower().removesuffix(".")


def _without_port(host: str) -> str:
    """Return the name in a Host header; that of an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
