"""Connections that wait too long are closed, and told why where a request has begun."""

import asyncio
import functools
import json
import time

import pytest

pytest.importorskip("uvicorn", reason="pip install 'kd_jax[serve]'")

import uvicorn
from uvicorn.server import ServerState

from kd_jax.serve import connections
from kd_jax.serve.uploads import Limits

SECONDS = 0.4
HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
LONG = 50_000_000  # bytes of an answer that no socket holds


async def application(scope, receive, send):
    if scope["path"] == "/slow":
        await asyncio.sleep(2 * SECONDS)
    body = bytes(LONG) if scope["path"] == "/long" else b"yes"
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def served(use, most=9, keep_alive=9):
    """Return what `use(connect, state)` returns, with what opens connections to a server."""

    async def run():
        config = uvicorn.Config(
            application, lifespan="off", log_level="critical", timeout_keep_alive=keep_alive
        )
        config.load()
        state = ServerState()
        make = functools.partial(
            connections.Connection, config=config, server_state=state, app_state={},
            seconds=SECONDS, most=most,
        )  # fmt: skip
        server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            return await use(functools.partial(asyncio.open_connection, "127.0.0.1", port), state)

    return asyncio.run(run())


async def closed_after(*parts, connect, pause=0.1):
    """Send parts with pauses until the server closes; return what it said, and the seconds."""
    reader, writer = await connect()
    began = time.monotonic()

    async def send():
        for part in parts:
            writer.write(part)
            await asyncio.sleep(pause)

    sending = asyncio.create_task(send())
    said = await asyncio.wait_for(reader.read(), 5)
    took = time.monotonic() - began
    sending.cancel()
    writer.close()
    return said, took


def drops(content):
    return [content[i : i + 1] for i in range(len(content))]


@pytest.mark.parametrize(("parts", "says"), [
    ([], b""),
    ([HEAD], b" 408 "),
    (drops(HEAD * 9), b" 408 "),
    ([HEAD + b"\r\n", *drops(HEAD * 9)], b"yes"),
    ([POST + b"Content-Length: 900\r\n\r\n", *drops(bytes(900))], b"yes"),
], ids=["nothing", "half a head", "a slow head", "a slow second head", "a slow body"])  # fmt: skip
def test_what_waits_too_long_is_closed(parts, says):
    said, took = served(lambda connect, state: closed_after(*parts, connect=connect))
    assert says in said if says else said == b""
    assert 0.9 * SECONDS < took < 3
    if b" 408 " in said:
        body = json.loads(said[said.rindex(b"\r\n\r\n") :])
        assert body == {"error": f"the request did not come within {SECONDS:g} s"}


def test_what_is_answered_slowly_is_not_closed():
    async def use(connect, state):
        reader, writer = await connect()
        writer.write(HEAD.replace(b"/ ", b"/slow ", 1) + b"\r\n")
        said = await asyncio.wait_for(reader.readuntil(b"yes"), 5)
        writer.write(HEAD + b"\r\n")  # and then there is time for another
        again = await asyncio.wait_for(reader.readuntil(b"yes"), 5)
        writer.close()
        return said, again

    assert all(b" 200 " in said for said in served(use))


def test_who_reads_no_answer_is_cut_off():
    async def use(connect, state):
        _, writer = await connect(limit=1000)
        writer.write(HEAD.replace(b"/ ", b"/long ", 1) + b"\r\n")
        while not state.connections:
            await asyncio.sleep(0.01)
        began = time.monotonic()
        while state.connections and time.monotonic() < began + 5:
            await asyncio.sleep(0.01)
        took = time.monotonic() - began
        writer.close()
        return took

    assert 0.9 * SECONDS < served(use) < 3


def test_more_connections_than_may_be_are_sent_away():
    async def use(connect, state):
        kept = [await connect() for _ in range(2)]
        while len(state.connections) < 2:
            await asyncio.sleep(0.01)
        said, _ = await closed_after(connect=connect)
        kept[0][1].write(HEAD + b"\r\n")
        answer = await asyncio.wait_for(kept[0][0].readuntil(b"yes"), 5)
        for _, writer in kept:
            writer.close()
        return said, answer

    said, answer = served(use, most=2)
    assert b" 503 " in said
    assert b'{"error": "2 connections are open already' in said
    assert b" 200 " in answer


def test_what_is_no_request_is_answered_in_json():
    said, _ = served(lambda connect, state: closed_after(b"\0\r\n\r\n", connect=connect))
    assert b" 400 " in said
    assert b'{"error": "this is not HTTP/1.1: ' in said


def test_the_server_has_these_bounds():
    server = connections.server(application, Limits(seconds=3, requests=5))
    server.config.load()
    made = server.config.http_protocol_class
    assert made.func is connections.Connection
    assert made.keywords["seconds"] == 3 + connections.SECONDS_IDLE
    assert made.keywords["most"] > 5
    assert server.config.timeout_keep_alive == connections.SECONDS_IDLE
