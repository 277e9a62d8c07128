"""Bounds of connections that uvicorn does not have: of waiting, of writing, and of their number.

uvicorn closes a connection that is idle after an answer. It waits for ever for one that sends
nothing, or its request a byte at a time, or does not read what it is answered.
"""

from __future__ import annotations

import asyncio
import functools
import http
import json
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from kd_jax.serve.uploads import Limits

SECONDS_IDLE = 10  # after an answer
_SECONDS_TO_STOP = 10  # for what was begun
_SECONDS_TO_CLOSE = 2.0  # for the last answer to reach who asked
_MORE = 256  # connections beside those that send images, for pages and what is kept alive


def server(application: Any, limits: Limits) -> uvicorn.Server:
    """Return a server of an ASGI application.

    Args:
      application: of ASGI.
      limits: of a request. The head of one may take `seconds` too, behind the time that a
        connection may be idle.
    """
    protocol: Any = functools.partial(
        Connection, seconds=limits.seconds + SECONDS_IDLE, most=limits.requests + _MORE
    )
    return uvicorn.Server(
        uvicorn.Config(
            application,
            http=protocol,
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=SECONDS_IDLE,
            timeout_graceful_shutdown=_SECONDS_TO_STOP,
        )
    )


class Connection(H11Protocol):
    """A connection that is closed when it waits too long."""

    def __init__(self, *args: Any, seconds: float, most: int, **options: Any):
        """Begin.

        Args:
          args, options: of uvicorn.
          seconds: until the head of a request must be whole, from the beginning or the last answer;
            and to read an answer.
          most: connections at once; more are sent away.
        """
        super().__init__(*args, **options)
        self._seconds, self._most = seconds, most
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Send a connection away if there are too many, or wait for its request."""
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > self._most:
            self._refuse(503, f"{self._most} connections are open already: try again in a moment")

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what came."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """Wait until what was written is read, but not for ever."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on writing."""
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, as everything, in JSON."""
        self._refuse(400, f"this is not HTTP/1.1: {msg.rstrip('.')}")

    def _watch(self) -> None:
        """Begin to wait for a request, or cease to while one is answered."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        elif not is_answering and self._head_timer is None:
            self._head_timer = self.loop.call_later(self._seconds, self._expire)

    def _expire(self) -> None:
        """Close the connection: with an answer if a request has begun, which never became whole."""
        has_begun = self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]
        if has_begun and not self.transport.is_closing():
            self._refuse(408, f"the request did not come within {self._seconds:g} s")
        self.transport.close()
        self._head_timer = self.loop.call_later(_SECONDS_TO_CLOSE, self.transport.abort)

    def _refuse(self, status: int, sentence: str) -> None:
        """Answer without asking the application, and close the connection."""
        body = json.dumps({"error": sentence}).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        head = h11.Response(
            status_code=status, headers=list(headers.items()), reason=http.HTTPStatus(status).phrase
        )
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
