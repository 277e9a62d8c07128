"""Downloads: fetched once, held to the digest of the first, and a failed one leaves nothing."""

import hashlib
import http.client
import http.server
import io
import itertools
import threading
import urllib.request

import pytest

from helpers import golden_state_dict, write_pth
from kd_jax.runtime import atomic_files
from kd_jax.runtime.errors import UserError
from kd_jax.teachers import load
from kd_jax.weights import published

CONTENT = b"weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
STATED = DIGEST[:3]  # fewer digits than are published, so that a test finds a collision


@pytest.fixture
def releases(tmp_path, monkeypatch):
    """A directory as the publisher's releases, and a cache of our own."""
    monkeypatch.setenv("KD_JAX_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "releases" / "resnet").mkdir(parents=True)
    return tmp_path / "releases"


def publish(releases, monkeypatch):
    """Put a file there as if it were the published ResNet20; return its path."""
    write_pth(releases / "x.pth", golden_state_dict("resnet20"))
    digest = atomic_files.sha256_of(releases / "x.pth")[:8]
    entry = published.TABLE["cifar100", "resnet20"]._replace(sha256=digest)
    monkeypatch.setitem(published.TABLE, ("cifar100", "resnet20"), entry)
    return (releases / "x.pth").rename(releases / "resnet" / f"cifar100_resnet20-{digest}.pt")


def test_a_published_file_is_fetched_once_and_checked(releases, monkeypatch):
    file = publish(releases, monkeypatch)
    path = published.fetch("resnet20", "cifar100", releases.as_uri())
    assert path.read_bytes() == file.read_bytes()
    file.unlink()
    assert published.fetch("resnet20", "cifar100", releases.as_uri()) == path
    card, _ = load.import_file("resnet20", path, "cifar100")
    assert card.claimed_top1 == 68.83
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"begins with \w{8}, expected \w{8}: it is cut short"):
        published.fetch("resnet20", "cifar100", releases.as_uri())


def test_without_a_network_it_says_what_to_fetch_and_where_to_put_it(releases):
    with pytest.raises(UserError) as caught:
        published.fetch("vgg11_bn", "cifar100", releases.as_uri())
    assert "/vgg/cifar100_vgg11_bn-57d0759e.pt cannot be fetched" in str(caught.value)
    assert "cache/published/cifar100_vgg11_bn-57d0759e.pt, or give" in str(caught.value)
    assert not list((releases.parent / "cache").rglob("*.p*t*"))


def test_two_downloads_of_one_file_do_not_meet(releases, monkeypatch):
    """The second begins and ends while the first reads: each has a name of its own till the end."""
    content = publish(releases, monkeypatch).read_bytes()
    fetched = []

    class Slow(io.BytesIO):
        def read(self, *size):
            if not fetched:
                fetched.append(None)
                monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(content))
                fetched.append(published.fetch("resnet20", "cifar100"))
                fetched[1].unlink()  # so that what is there in the end is the first one's
            return super().read(*size)

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Slow(content))
    path = published.fetch("resnet20", "cifar100")
    assert fetched == [None, path]
    assert path.read_bytes() == content
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_download_that_is_cut_short_leaves_nothing(releases, monkeypatch):
    class Cut(io.BytesIO):
        def read(self, *size):
            if content := super().read(5):
                return content
            raise http.client.IncompleteRead(b"", 100)

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Cut(b"ten bytes."))
    with pytest.raises(UserError, match=r"cannot be fetched \(IncompleteRead.*fetch it where"):
        published.fetch("resnet20", "cifar100")
    assert not any(path.is_file() for path in (releases.parent / "cache").rglob("*"))


def test_nobody_publishes_that(releases):
    with pytest.raises(UserError, match=r"no published weights of mobilenet_v3_small.*resnet44"):
        published.fetch("mobilenet_v3_small", "cifar100", releases.as_uri())


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
