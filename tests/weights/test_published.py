"""Downloads from a local server are held to the digest of the first; a wrong one leaves nothing.

The ordinary download, two at once and a missing network are in `test_torch_import.py`.
"""

import hashlib
import http.server
import itertools
import threading

import pytest

from kd_jax.runtime import atomic_files
from kd_jax.runtime.errors import UserError
from kd_jax.weights import published

CONTENT = b"weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
STATED = DIGEST[:3]  # fewer digits than are published, so that a test finds a collision


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve `server.content` as every published file, and nothing if it is None."""
    monkeypatch.setenv("KD_JAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    entry = published.TABLE["cifar100", "resnet20"]._replace(sha256=STATED)
    monkeypatch.setitem(published.TABLE, ("cifar100", "resnet20"), entry)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.server.content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header(
                "Content-Length", str(self.server.declared or len(self.server.content))
            )
            self.end_headers()
            self.wfile.write(self.server.content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.declared = CONTENT, None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(server):
    return published.fetch("resnet20", "cifar100", f"http://127.0.0.1:{server.server_port}")


def files(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def another_file():
    """Return content whose digest begins as that of `CONTENT`, and differs later."""
    candidates = (CONTENT + str(number).encode() for number in itertools.count())
    return next(c for c in candidates if hashlib.sha256(c).hexdigest().startswith(STATED))


def record_of(path):
    return path.parent.parent / "published_sha256" / f"{path.name}.sha256"


def test_a_later_download_is_held_to_the_full_digest_of_the_first(server, tmp_path):
    path = fetch(server)
    assert path.read_bytes() == CONTENT
    assert record_of(path).read_text() == f"{DIGEST}  {path.name}\n"
    path.unlink()
    server.content = another_file()
    with pytest.raises(UserError, match=rf"expected {DIGEST}, the one of the first download"):
        fetch(server)
    assert files(tmp_path) == [record_of(path).name]
    path.write_bytes(server.content)  # or put there by hand
    with pytest.raises(UserError, match="another file with the same first digits; remove it"):
        fetch(server)
    path.unlink()
    server.content = CONTENT
    assert fetch(server).read_bytes() == CONTENT


def test_a_file_from_before_records_gets_one(server):
    path = fetch(server)
    record_of(path).unlink()
    server.content = None
    assert fetch(server) == path
    assert record_of(path).read_text().startswith(DIGEST)


@pytest.mark.parametrize(("content", "declared", "says"), [
    (None, None, r"cannot be fetched \(Not Found\): fetch it where there is a network"),
    (b"<html>", None, rf"came from http.* begins with \w{{8}}, expected {STATED}: it is cut short"),
    (CONTENT[:-1], len(CONTENT), "it is cut short or another file; fetch it again"),
])  # fmt: skip
def test_a_failed_download_leaves_nothing(server, content, declared, says, tmp_path):
    server.content, server.declared = content, declared
    with pytest.raises(UserError, match=says):
        fetch(server)
    assert files(tmp_path) == []


def test_a_full_disk_is_told_and_leaves_nothing(server, monkeypatch, tmp_path):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic_files.os, "fsync", full)
    with pytest.raises(
        UserError, match=r"cannot be written \(No space left on device\): make room"
    ):
        fetch(server)
    assert files(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_told(server, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KD_JAX_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\)"):
        fetch(server)


def test_a_cache_that_is_only_read_serves_its_files(server, monkeypatch, caplog):
    path = fetch(server)
    record_of(path).unlink()

    def read_only(path):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(published.logger, "propagate", True)
    monkeypatch.setattr(atomic_files, "replacing", read_only)
    assert fetch(server) == path
    assert "is not kept for its next use" in caplog.text


def test_a_record_that_is_damaged_is_told(server):
    path = fetch(server)
    record_of(path).write_text("")
    with pytest.raises(UserError, match=r"expected 64 hex digits: remove it"):
        fetch(server)
