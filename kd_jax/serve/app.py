"""The server's application: the page, `POST /predict`, `GET /models`, `GET /health`, OpenAPI."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Annotated, Any

import fastapi
from fastapi import Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import kd_jax
from kd_jax.inference.classifier import Classifier
from kd_jax.inference.opening import STUDENT, TEACHER
from kd_jax.serve import uploads
from kd_jax.serve.guard import Guard
from kd_jax.serve.schema import (
    Bounds,
    ClassChoice,
    Health,
    Models,
    NetworkAnswer,
    NetworkFacts,
    Prediction,
    Problem,
)
from kd_jax.serve.uploads import Limits, Refused
from kd_jax.serve.worker import Answer, Answers, Worker

PAGE = Path(__file__).parent / "page"
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_MOST_CLASSES = 1000  # of one answer
_DISCARDED = 4  # times the limit: of what is too long, read and dropped before it is answered


def create(
    networks: Mapping[str, Classifier], limits: Limits, names: Container[str] | None = None
) -> tuple[Any, Worker]:
    """Return the ASGI application, and the worker to close after it.

    Args:
      networks: `student`, and `teacher` if there is one.
      limits: of a request.
      names: contains the hosts under which it may be asked for; None: any.
    """
    worker = Worker(networks, limits)
    app = fastapi.FastAPI(
        title="kd_jax.serve",
        version=kd_jax.__version__,
        description="Classifies images. Nothing is written to disk.",
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )
    _answer_problems_as_json(app, limits)
    for path, (name, kind) in _FILES.items():
        app.get(path, include_in_schema=False)(_file(PAGE / name, kind))

    @app.get("/health")
    async def health() -> Health:
        """Tell that the server answers."""
        return Health(status="ok", requests=worker.requests)

    @app.get("/models")
    async def models() -> Models:
        """Tell which networks answer, and what an image may have."""
        return Models(
            student=_facts(networks[STUDENT]),
            teacher=_facts(networks[TEACHER]) if TEACHER in networks else None,
            limits=Bounds(
                bytes=limits.bytes,
                pixels=limits.pixels,
                seconds=limits.seconds,
                types=list(uploads.TYPES),
            ),
        )

    @app.post("/predict", responses=_PROBLEMS, openapi_extra={"requestBody": _BODY})
    async def predict(
        request: Request,
        top: Annotated[int, Query(ge=1, le=_MOST_CLASSES, description="Classes to name.")] = 5,
    ) -> Prediction:
        """Classify the image that is the body of the request."""
        try:
            uploads.check_type(request.headers.get("content-type", ""))
            worker.take_place()
        except Refused:
            await _discard(request, limits)
            raise
        try:
            content = await _receive(request, limits)
            return _prediction(await worker.answers(content, top))
        finally:
            worker.give_place()

    return Guard(app, names), worker


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": description}
    for status, description in {
        400: "The body is empty or was cut off.",
        408: "The body did not come in time.",
        413: "The image has too many bytes or pixels.",
        415: "The Content-Type is not that of an image that is taken.",
        422: "The body cannot be read as an image, or a parameter is wrong.",
        500: "A network fails, or the server.",
        503: "Too many images wait.",
        504: "The turn of the image did not come in time.",
    }.items()
}
_BODY = {
    "required": True,
    "description": "The bytes of an image file.",
    "content": {
        kind: {"schema": {"type": "string", "format": "binary", "minLength": 1}}
        for kind in (*uploads.TYPES, uploads.ANY_TYPE)
    },
}


def _file(path: Path, kind: str) -> Any:
    async def answer() -> FileResponse:
        return FileResponse(path, media_type=kind)

    return answer


def _answer_problems_as_json(app: Any, limits: Limits) -> None:
    """Have every problem answered as a `Problem`."""

    @app.exception_handler(Refused)
    async def refused(request: Request, problem: Refused) -> JSONResponse:
        del request
        headers = {"Retry-After": "1"} if problem.status == 503 else None
        return JSONResponse({"error": str(problem)}, problem.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, problem: RequestValidationError) -> JSONResponse:
        await _discard(request, limits)
        error = problem.errors()[0]
        name = ".".join(map(str, error["loc"]))
        return JSONResponse({"error": f"{name}: {error['msg']}"}, 422)

    @app.exception_handler(HTTPException)
    async def other(request: Request, problem: HTTPException) -> JSONResponse:
        where = f"{request.method} {request.url.path[:80]}"
        return JSONResponse(
            {"error": f"{where}: {problem.detail}"}, problem.status_code, problem.headers
        )

    @app.exception_handler(Exception)
    async def failed(request: Request, problem: Exception) -> JSONResponse:
        del request
        kind = type(problem).__name__
        return JSONResponse({"error": f"the server failed ({kind}): its log says where"}, 500)


async def _receive(request: Request, limits: Limits) -> bytes:
    """Return the body of a request, which is kept in memory only.

    What is too long is read a while and dropped: a client that still sends when it is answered
    would see a broken connection, and not the answer.

    Raises:
      Refused: it is too long, does not come in time, or is cut off.
    """
    parts, size = await _read(request, limits.seconds, limits.bytes, _DISCARDED * limits.bytes)
    if size > limits.bytes:
        raise Refused(413, f"the image has more than {limits.bytes:,} bytes: send it smaller")
    return b"".join(parts)


async def _read(
    request: Request, seconds: float, most_kept: int, most_read: int
) -> tuple[list[bytes], int]:
    """Return the parts of a body, none if they are too long to be kept, and the bytes read.

    Raises:
      Refused: it does not come in time, or is cut off.
    """
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size <= most_kept:
                    parts.append(part)
                else:
                    parts.clear()
                if size > most_read:
                    break
    except TimeoutError:
        raise Refused(408, f"the image did not come within {seconds:g} s") from None
    except ClientDisconnect:
        raise Refused(400, "the connection was closed before the image was whole") from None
    return parts, size


async def _discard(request: Request, limits: Limits) -> None:
    """Read the body of a request that is refused already, see `_receive`, and keep nothing."""
    with contextlib.suppress(Refused):
        await _read(request, limits.seconds, most_kept=0, most_read=limits.bytes)


def _facts(network: Classifier) -> NetworkFacts:
    height, width = network.size
    names = ("runtime", "top1", "top1_of", "params", "bytes")
    facts = {name: network.facts.get(name) for name in names}
    return NetworkFacts(
        name=network.name,
        origin=network.origin,
        classes=network.num_classes,
        height=height,
        width=width,
        **facts,
    )


def _prediction(answers: Answers) -> Prediction:
    of = {who: _answer(answer) for who, answer in answers.of.items()}
    return Prediction(
        student=of[STUDENT],
        teacher=of.get(TEACHER),
        same_class=answers.same_class,
        width=answers.width,
        height=answers.height,
        is_first_of_several=answers.has_more,
        decode_ms=round(answers.decode_milliseconds, 3),
    )


def _answer(answer: Answer) -> NetworkAnswer:
    return NetworkAnswer(
        latency_ms=round(answer.milliseconds, 3),
        top=[
            ClassChoice(label=c.label, name=c.name, probability=min(max(c.probability, 0.0), 1.0))
            for c in answer.top
        ],
    )
