"""What every answer of the server goes through: who may ask, and what a browser may do with it."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware: refuses other hosts' names, and adds `HEADERS`.

    A page from elsewhere could have its own name lead to 127.0.0.1 and so read what is answered
    here (DNS rebinding); the name that the browser asked for tells.
    """

    def __init__(self, app: Any, hosts: Collection[str]):
        """Wrap an application.

        Args:
          app: of ASGI.
          hosts: names under which it may be asked for; empty: any.
        """
        self._app, self._hosts = app, frozenset(hosts)
        self._headers = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers]
            await send(message)

        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if self._hosts and _without_port(host) not in self._hosts:
            body = json.dumps({"error": f"the host {host[:80]!r} is not this server's"}).encode()
            headers = [(b"content-type", b"application/json")]
            await send_guarded({"type": "http.response.start", "status": 421, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await self._app(scope, receive, send_guarded)


def _without_port(host: str) -> str:
    """Return the name in a Host header; that of an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
