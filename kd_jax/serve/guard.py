"""What every answer of the server goes through: who may ask, and what a browser may do with it."""

from __future__ import annotations

import json
from collections.abc import Container
from typing import Any

from kd_jax.runtime.console import logger

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
    """ASGI middleware: refuses other hosts' names, adds `HEADERS`, and logs what fails here."""

    def __init__(self, app: Any, names: Container[str] | None):
        """Wrap an application.

        Args:
          app: of ASGI, which answers what it raises itself.
          names: contains what a Host header may be, see `names.Names`; None: anything.
        """
        self._app, self._names = app, names
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
        if self._names is not None and host not in self._names:
            sentence = (
                f"the host {host[:80]!r} is not a name of this server: ask under its address, or "
                "start it with --names=NAME if the name is right"
            )
            body = json.dumps({"error": sentence}).encode()
            headers = [(b"content-type", b"application/json")]
            await send_guarded({"type": "http.response.start", "status": 421, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        try:
            await self._app(scope, receive, send_guarded)
        except Exception:  # a bug of ours, which Starlette answered and raised again
            logger.exception("%s %r failed", scope["method"], scope["path"][:80])
