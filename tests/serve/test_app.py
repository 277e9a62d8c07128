"""The server's application, asked within this process: right answers, and clear refusals."""

import asyncio
import dataclasses
import json
import sys
import threading
import time

import numpy as np
import pytest

from kd_jax.data import loose_images
from kd_jax.inference import opening
from kd_jax.runtime.console import logger
from kd_jax.runtime.errors import UserError
from web_images import encoded, good, hostile

httpx = pytest.importorskip("httpx", reason="pip install httpx to ask the server")
pytest.importorskip("fastapi", reason="pip install 'kd_jax[serve]'")

from kd_jax.serve import app as app_lib  # noqa: E402
from kd_jax.serve import guard, uploads  # noqa: E402
from kd_jax.serve.names import Names  # noqa: E402
from kd_jax.serve.uploads import Limits  # noqa: E402

LIMITS = Limits(bytes=200_000, pixels=1_000_000, seconds=20.0, requests=8)
LOCAL = "http://127.0.0.1"
NAMES = Names("127.0.0.1")


@pytest.fixture
def served(networks):
    """Return `ask`, which runs `f(client)` with a client of the application."""
    workers = []

    def ask(use, limits=LIMITS, of=networks, names=NAMES, base_url=LOCAL):
        application, worker = app_lib.create(of, limits, names)
        workers.append(worker)

        async def run():
            transport = httpx.ASGITransport(application)
            async with httpx.AsyncClient(transport=transport, base_url=base_url) as client:
                return await use(client)

        return asyncio.run(run())

    yield ask
    for worker in workers:
        worker.close()


def post(client, content, kind="image/png", query=""):
    headers = {"content-type": kind} if kind else {}
    return client.post(f"/predict{query}", content=content, headers=headers)


@pytest.mark.parametrize("name", good())
def test_an_image_is_answered_as_by_predict(name, served, networks, tmp_path):
    content, kind = good()[name]
    response = served(lambda client: post(client, content, kind))
    assert response.status_code == 200, response.text
    answer = response.json()
    (tmp_path / "x").write_bytes(content)
    sizes = [network.size for network in networks.values()]
    _, images = loose_images.read(loose_images.find([str(tmp_path / "x")]), sizes)
    for (who, network), image in zip(networks.items(), images, strict=True):
        (probabilities,) = network.probabilities(image)
        expected = [
            {"label": c.label, "name": c.name, "probability": c.probability}
            for c in network.top(probabilities, 5)
        ]
        assert answer[who]["top"] == expected
        assert answer[who]["latency_ms"] > 0
    same = answer["student"]["top"][0]["name"] == answer["teacher"]["top"][0]["name"]
    assert answer["same_class"] == same
    assert answer["is_first_of_several"] == (name == "animated")
    if name == "turned":
        assert (answer["width"], answer["height"]) == (40, 56)


def test_hostile_uploads_are_each_refused_in_a_sentence(served):
    cases = hostile()
    assert len(cases) >= 30

    async def use(client):
        responses = {}
        for name, (content, kind, *_) in cases.items():
            responses[name] = await post(client, content, kind)
        return responses, await post(client, encoded()), await client.get("/health")

    responses, after, health = served(use)
    for name, response in responses.items():
        status, says = cases[name][2:]
        assert response.status_code == status, (name, response.text)
        assert response.headers["content-type"] == "application/json"
        assert list(response.json()) == ["error"], name
        error = response.json()["error"]
        assert says in error, (name, error)
        assert "\n" not in error
        assert "object at 0x" not in error
        assert len(error) < 400
    assert after.status_code == 200
    assert health.json() == {"status": "ok", "requests": 0}


@pytest.mark.parametrize("query", ["?top=0", "?top=-1", "?top=many", "?top=1001", "?top="])
def test_a_wrong_parameter_is_a_sentence(query, served):
    response = served(lambda client: post(client, encoded(), query=query))
    assert response.status_code == 422
    assert response.json()["error"].startswith("query.top: ")


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/predict", 405), ("PUT", "/predict", 405), ("POST", "/health", 405),
    ("GET", "/docs", 404), ("GET", "/../pyproject.toml", 404), ("GET", "/page/index.html", 404),
])  # fmt: skip
def test_what_is_not_there_is_json_too(method, path, status, served):
    response = served(lambda client: client.request(method, path))
    assert response.status_code == status
    assert response.json()["error"].startswith(f"{method} /")


def test_one_network_alone_has_no_teacher(served, networks):
    alone = {"student": networks["student"]}

    async def use(client):
        return await post(client, encoded(), query="?top=1000"), await client.get("/models")

    answer, models = (response.json() for response in served(use, of=alone))
    assert answer["teacher"] is answer["same_class"] is models["teacher"] is None
    assert len(answer["student"]["top"]) == 100
    probabilities = [choice["probability"] for choice in answer["student"]["top"]]
    assert sum(probabilities) == pytest.approx(1)
    assert models["student"]["classes"] == 100
    assert models["limits"]["bytes"] == LIMITS.bytes


class Gate:
    """A network that answers when it is let."""

    def __init__(self, network):
        self.entered, self.let = threading.Event(), threading.Event()
        self.network = network

    def __call__(self, images):
        self.entered.set()
        self.let.wait(10)
        return self.network.call(images)


def gated(networks):
    gate = Gate(networks["student"])
    return gate, {"student": dataclasses.replace(networks["student"], call=gate)}


def test_more_than_may_wait_are_sent_away_and_the_others_are_answered(served, networks):
    gate, of = gated(networks)

    async def use(client):
        tasks = [asyncio.create_task(post(client, encoded())) for _ in range(12)]
        while sum(task.done() for task in tasks) < 4:
            await asyncio.sleep(0.01)
        gate.let.set()
        return await asyncio.gather(*tasks)

    statuses = [response.status_code for response in served(use, of=of)]
    assert sorted(statuses) == [200] * 8 + [503] * 4


def test_a_turn_that_does_not_come_is_told_in_time(served, networks):
    gate, of = gated(networks)
    limits = Limits(seconds=0.3)

    async def use(client):
        began = time.monotonic()
        responses = await asyncio.gather(*(post(client, encoded()) for _ in range(3)))
        took = time.monotonic() - began
        gate.let.set()
        return responses, took, await post(client, encoded())

    responses, took, after = served(use, limits=limits, of=of)
    assert [response.status_code for response in responses] == [504] * 3
    assert "no answer within 0.3 s" in responses[0].json()["error"]
    assert took < 3
    assert after.status_code == 200


def test_a_body_that_does_not_come_is_told_in_time(served):
    async def body():
        yield b"\x89PNG"
        await asyncio.sleep(5)
        yield b"never"

    response = served(lambda client: post(client, body()), limits=Limits(seconds=0.3))
    assert response.status_code == 408
    assert response.json()["error"] == "the image did not come within 0.3 s"


def test_a_network_that_fails_is_a_sentence(served, networks):
    def broken(images):
        return np.full((1, 100), np.nan, np.float32)

    of = {"student": dataclasses.replace(networks["student"], call=broken)}
    response = served(lambda client: post(client, encoded()), of=of)
    assert response.status_code == 500
    assert "the student fails: the student.onnx's logits are not finite" in response.json()["error"]


def test_a_runtime_that_fails_is_a_sentence_and_a_line_of_the_log(served, networks, caplog):
    logger.propagate = True

    def broken(images):
        raise RuntimeError("node 3 of\nthe graph failed")

    of = {"student": dataclasses.replace(networks["student"], call=broken)}

    async def use(client):
        return await post(client, encoded()), await client.get("/health")

    response, health = served(use, of=of)
    assert response.status_code == 500
    error = response.json()["error"]
    reason = "RuntimeError: node 3 of the graph failed"
    assert error.startswith(f"the runtime of the student fails ({reason})")
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.getMessage() == f"the runtime of the student fails: {reason}"
    assert record.exc_info is None
    assert health.json() == {"status": "ok", "requests": 0}


def test_a_bug_of_ours_is_json_too_and_its_traceback_in_the_log(served, monkeypatch, caplog):
    logger.propagate = True
    monkeypatch.setattr(app_lib, "_prediction", lambda answers: 1 / 0)
    response = served(lambda client: post(client, encoded()))
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"error": "the server failed (ZeroDivisionError): its log says where"}
    assert set(map(str.lower, guard.HEADERS)) <= set(response.headers)
    assert [record.getMessage() for record in caplog.records] == ["POST '/predict' failed"]
    assert caplog.records[0].exc_info


def test_an_image_without_memory_for_it_is_a_sentence(served, monkeypatch):
    def decode(*arguments):
        raise MemoryError

    monkeypatch.setattr(uploads.image_files, "decode", decode)
    response = served(lambda client: post(client, encoded()))
    assert response.status_code == 503
    assert "no memory for the image now" in response.json()["error"]


def test_the_page_loads_nothing_from_elsewhere(served):
    async def use(client):
        return [await client.get(path) for path in ("/", "/page.js", "/page.css", "/icon.svg")]

    for response in served(use):
        assert response.status_code == 200
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "unsafe" not in response.headers["content-security-policy"]
        text = response.text.replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text
        assert "https:" not in text
        assert "//cdn" not in text


@pytest.mark.parametrize(("url", "status"), [
    ("http://127.0.0.1", 200), ("http://127.0.0.1:8000", 200), ("http://localhost:1", 200),
    ("http://[::1]:8000", 200), ("http://evil.example", 421),
    ("http://127.0.0.1.evil.example", 421),
])  # fmt: skip
def test_only_the_names_of_this_machine_are_answered(url, status, served):
    response = served(lambda client: client.get("/health"), base_url=url)
    assert response.status_code == status
    assert set(map(str.lower, guard.HEADERS)) <= set(response.headers)
    assert (status == 200) == ("error" not in response.json())


WRITES = []


def _watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if (mode and set(mode) & set("wax+")) or (flags or 0) & 0b11:
            WRITES.append(path)


def test_nothing_is_written_to_disk(served):
    sys.addaudithook(_watch)
    WRITES.clear()
    with open("/dev/null", "w"):
        assert WRITES == ["/dev/null"]  # it would be seen
    large = encoded(kind="BMP") + bytes(150_000)
    files = [encoded(), large, bytes(2_000_000), *(case[0] for case in hostile().values())]

    async def use(client):
        WRITES.clear()
        for content in files:
            await post(client, content)
        return list(WRITES)

    assert served(use) == []


def test_the_description_tells_every_answer(served):
    description = served(lambda client: client.get("/openapi.json")).json()
    predict = description["paths"]["/predict"]["post"]
    assert set(predict["requestBody"]["content"]) >= {"image/png", "image/jpeg"}
    statuses = {case[2] for case in hostile().values()} | {200, 408, 503, 504}
    assert {int(status) for status in predict["responses"]} >= statuses
    assert "ClassChoice" in json.dumps(description)


def test_a_place_that_cannot_be_opened_is_named_by_its_option(exported):
    with pytest.raises(UserError, match="--teacher=absent is not there"):
        opening.classifiers(exported[0], teacher="absent", option="--teacher")
