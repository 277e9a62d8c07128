"""The server as a user starts it: it answers, bears a crowd, stops, and says what is wrong."""

import concurrent.futures
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers import ROOT, command, run, wait_for
from web_images import encoded

pytest.importorskip("uvicorn", reason="pip install 'kd_jax[serve]'")


class Server:
    """A server in a process of its own."""

    def __init__(self, directory, *arguments):
        self.said = directory / "said"
        options = command("kd_jax.serve", *arguments, "--port=0")
        with open(self.said, "wb") as file:
            self.process = subprocess.Popen(**options | {"stderr": file})
        wait_for(lambda: "serving on" in self.said.read_text(), self.process)
        self.port = int(re.search(r"http://127.0.0.1:(\d+)/", self.said.read_text())[1])

    def ask(self, method, path, content=None, kind="image/png", connection=None):
        connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, content, {"content-type": kind} if content else {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def server(exported, tmp_path_factory):
    started = Server(
        tmp_path_factory.mktemp("server"), f"--model={exported[0]}", f"--teacher={exported[1]}"
    )
    yield started
    assert started.stop() == 0


def test_it_answers_and_says_who_can_reach_it(server):
    status, answer = server.ask("POST", "/predict?top=3", encoded())
    assert status == 200
    assert len(answer["student"]["top"]) == len(answer["teacher"]["top"]) == 3
    said = server.said.read_text()
    assert "only this machine can reach it" in said
    assert "student: student.onnx, a file of tiny run by ONNX Runtime" in said


def test_a_body_that_is_far_too_long_is_answered_and_not_cut_off(server):
    status, answer = server.ask("POST", "/predict", bytes(30_000_000))
    assert status == 413
    assert "more than 10,000,000 bytes" in answer["error"]


def crowd(server, clients, requests):
    """Let clients ask at once, each over one connection; return the statuses and the seconds."""
    content = encoded()

    def client(_):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        return [
            server.ask("POST", "/predict", content, connection=connection)[0]
            for _ in range(requests // clients)
        ]

    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        statuses = [status for each in pool.map(client, range(clients)) for status in each]
    return statuses, time.perf_counter() - began


def test_no_request_of_a_crowd_is_lost(server):
    statuses, _ = crowd(server, 16, 320)
    assert statuses == [200] * 320
    assert server.ask("GET", "/health")[1] == {"status": "ok", "requests": 0}


@pytest.mark.proof
def test_none_of_two_thousand_requests_of_sixteen_at_a_time_is_lost(server):
    statuses, _ = crowd(server, 16, 2_000)
    assert statuses == [200] * 2_000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_after_what_was_begun(number, exported, tmp_path):
    server = Server(tmp_path, f"--model={exported[0]}")
    idle = http.client.HTTPConnection("127.0.0.1", server.port)  # and kept alive
    assert server.ask("GET", "/health", connection=idle)[0] == 200
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answers = pool.submit(server.ask, "POST", "/predict", encoded())
        while not answers.running() and not answers.done():
            time.sleep(0.001)
        time.sleep(0.05)
        assert server.stop(number) == 0
        assert answers.result()[0] == 200
    said = server.said.read_text()
    assert said.splitlines()[-1].endswith("stopped")
    assert "Traceback" not in said


def test_a_port_that_is_taken_is_a_sentence(server, exported):
    done = run("kd_jax.serve", f"--model={exported[0]}", f"--port={server.port}")
    assert done.returncode == 2
    (error,) = done.stderr.splitlines()
    assert re.match(r"error: cannot listen on --host=127.0.0.1 --port=\d+ \(Address already", error)


@pytest.mark.parametrize(("arguments", "says"), [
    ([], "--model is missing"),
    (["--model=absent"], "--model=absent is not there"),
    (["--model=README.md"], "is not known to be an exported file"),
    (["--model={student}", "--teacher=own"], "name it, --teacher=PLACE"),
    (["--model={student}", "--host=192.0.2.7"], "--host must be an address of this machine"),
    (["--model={student}", "--port=70000"], "port"),
    (["--model={student}", "--max_mb=0"], "max_mb"),
    (["--model={student}", "--max_mb=inf"], "--max_mb=inf: expected a number that is finite"),
    (["--model={student}", "--names=a:80"], "'a:80' is not the name of a host"),
    (["--model={student}", "--checkpoint=best"], "is no run: leave --checkpoint out"),
])  # fmt: skip
def test_wrong_input_is_one_sentence(arguments, says, exported):
    arguments = [argument.format(student=exported[0]) for argument in arguments]
    if not any(argument.startswith("--port") for argument in arguments):
        arguments.append("--port=0")
    done = run("kd_jax.serve", *arguments)
    assert done.returncode == 2, done.stderr
    (error,) = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert says in error


HOOKS = """
import schemathesis
from hypothesis import strategies
from web_images import encoded

for kind in ("png", "jpeg", "webp", "gif", "bmp", "avif"):  # "binary" cannot say what an image is
    schemathesis.openapi.media_type(f"image/{kind}", strategies.just(encoded(kind=kind.upper())))
schemathesis.openapi.media_type("application/octet-stream", strategies.just(encoded()))
"""


@pytest.mark.proof
def test_schemathesis_finds_nothing(server, tmp_path):
    """Requests that the OpenAPI description allows, and requests that it does not."""
    pytest.importorskip("schemathesis", reason="pip install schemathesis to try the endpoint")
    (tmp_path / "hooks.py").write_text(HOOKS)
    places = f"{tmp_path}{os.pathsep}{ROOT / 'tests'}"
    done = subprocess.run(
        [Path(sys.executable).parent / "schemathesis", "run", "--max-examples=60", "--seed=1",
         f"http://127.0.0.1:{server.port}/openapi.json"],
        cwd=tmp_path, env=os.environ | {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": places},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "Tested: 3" in done.stdout
    assert "No issues found" in done.stdout


@pytest.mark.proof
def test_the_page_works_in_a_browser(server, tmp_path):
    """Debian's Chromium: an image is chosen by keyboard's element and dropped; on a phone too."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    chromium = shutil.which("chromium") or pytest.skip("apt install chromium to test the page")
    image = tmp_path / "an image.png"
    image.write_bytes(encoded())
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width, height in ((1280, 800), (360, 740)):
            page = browser.new_page(viewport={"width": width, "height": height})
            said = []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.goto(f"http://127.0.0.1:{server.port}/")
            page.wait_for_selector("article.teacher")
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.id") == "file"
            page.set_input_files("#file", str(image))
            page.wait_for_selector("article.teacher li:nth-child(5)")
            assert "The student says class " in page.inner_text("#state")
            assert page.evaluate("document.documentElement.scrollWidth") == width
            for name, says in (
                ("notes.txt", "is not an image of a kind"),
                ("x.png", "the body cannot be read as an image"),
            ):
                (tmp_path / name).write_text("no image")
                page.set_input_files("#file", str(tmp_path / name))
                page.get_by_role("alert").get_by_text(says).wait_for()
            page.evaluate(
                """bytes => {
                  const transfer = new DataTransfer();
                  transfer.items.add(new File([new Uint8Array(bytes)], "dropped.png"));
                  window.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer}));
                }""",
                list(encoded()),
            )
            page.wait_for_selector("article.student li:nth-child(5)")
            page.get_by_text("dropped.png, 56").wait_for()
            assert not page.inner_text("#problem")
            assert [text for text in said if "422" not in text] == []
        browser.close()
