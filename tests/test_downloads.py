"""Downloads: whole, resumed, within a time, and with honest errors."""

import hashlib
import http.server
import re
import threading
import time

import pytest

from nstvis.runs import cache, files

BODY = bytes(range(256)) * 400
SHA = hashlib.sha256(BODY).hexdigest()[:8]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves BODY under names that say what goes wrong."""

    asked: list[str | None]

    def do_GET(self):
        self.asked.append(self.headers["Range"])
        getattr(self, self.path.strip("/").partition("?")[0])()

    def log_message(self, format, *args):
        """Keeps quiet."""

    def answer(self, status, body, length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(length or len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def start(self):
        return int(re.findall(r"\d+", self.headers["Range"] or "0")[0])

    def whole(self):
        start = self.start()
        if start >= len(BODY):
            self.send_error(416)
        elif start:
            part = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
            self.answer(206, BODY[start:], Content_Range=part)
        else:
            self.answer(200, BODY)

    def without_range(self):
        self.answer(200, BODY)

    def cut(self):
        self.answer(200, BODY[:60_000], len(BODY))

    def stalling(self):
        self.answer(200, BODY[:60_000], len(BODY))
        self.server.over.wait(30)

    def dripping(self):
        self.answer(200, b"", len(BODY))
        while not self.server.over.wait(0.05):
            self.wfile.write(b"?")

    def moved(self):
        self.answer(302, b"", Location="/whole?elsewhere")

    def login(self):
        self.answer(302, b"", Location="/page")

    def page(self):
        self.answer(
            200, b"<html>Please log in", Content_Type="text/html; charset=utf-8"
        )

    def circle(self):
        self.answer(302, b"", Location="/circle")

    def longer(self):
        self.answer(200, BODY, len(BODY) + 10)

    def shorter(self):
        self.answer(200, BODY, len(BODY) - 10)

    def nonsense(self):
        self.send_response(200)
        self.send_header("Content-Length", "many")
        self.end_headers()
        self.wfile.write(BODY)

    def missing(self):
        self.send_error(404)


@pytest.fixture
def site(monkeypatch):
    """Its address; it lists the ranges that it was asked for."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(Handler, "asked", [], raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.over = threading.Event()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / f"net-{SHA}.pth"


def partial(path, content=None):
    file = path.with_name(f".{path.name}.partial")
    if content is not None:
        file.parent.mkdir()
        file.write_bytes(content)
    return file


def refused(url, path, error: type[Exception] = ConnectionError):
    with pytest.raises(error) as caught:
        cache.download(url, path)
    message = str(caught.value)
    assert "\n" not in message
    assert url in message
    assert f"try again, or download it by hand to {path}" in message
    assert not path.exists()
    return message


def assert_whole(path):
    assert path.read_bytes() == BODY
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "name", ["whole", "without_range", "moved", "longer", "nonsense"]
)
def test_it_arrives_whole(site, path, name):
    cache.download(f"{site}/{name}", path)
    assert_whole(path)
    cache.download(f"{site}/missing", path)  # as another process has been faster


def test_what_was_cut_is_resumed(site, path, capsys):
    assert "ended after 60,000 of 102,400 bytes" in refused(f"{site}/cut", path)
    assert partial(path).read_bytes() == BODY[:60_000]
    cache.download(f"{site}/whole", path)
    assert_whole(path)
    assert Handler.asked == [None, "bytes=60000-"]
    assert "59%" in capsys.readouterr().err  # where the bar starts


def test_a_server_that_ignores_ranges_sends_all_again(site, path):
    partial(path, BODY[:70_000])
    cache.download(f"{site}/without_range", path)
    assert_whole(path)


@pytest.mark.parametrize("extra", [b"", b"?"])
def test_what_is_there_already_is_not_asked_for(site, path, extra):
    partial(path, BODY + extra)  # of a process that was killed at the end, or damaged
    cache.download(f"{site}/whole", path)
    assert_whole(path)
    assert Handler.asked == (["bytes=102401-", None] if extra else [])


def test_what_is_damaged_is_removed(site, path):
    partial(path, b"?" * 60_000)
    message = refused(f"{site}/whole", path, ValueError)
    assert "arrived damaged" in message
    assert not list(path.parent.iterdir())
    assert "damaged" in refused(f"{site}/shorter", path, ValueError)
    cache.download(f"{site}/whole", path)
    assert_whole(path)


@pytest.mark.parametrize("name", ["stalling", "dripping"])
def test_a_server_that_stalls_is_left(site, path, monkeypatch, name):
    monkeypatch.setattr(cache, "SILENCE", 0.3)
    began = time.monotonic()
    message = refused(f"{site}/{name}", path)
    assert time.monotonic() - began < 5
    assert ("timed out" if name == "stalling" else "too few") in message
    if name == "stalling":
        cache.download(f"{site}/whole", path)
        assert Handler.asked[-1] == "bytes=60000-"


def test_no_download_takes_for_ever(site, path, monkeypatch):
    monkeypatch.setattr(cache, "LONGEST", 0.2)
    assert "not done after" in refused(f"{site}/dripping", path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("login", "/page is a web page, perhaps the login of your network"),
        ("circle", "infinite loop"),
        ("missing", "HTTP Error 404"),
    ],
)
def test_an_answer_that_is_no_file_is_named(site, path, name, reason):
    assert reason in refused(f"{site}/{name}", path)
    assert not list(path.parent.iterdir())


def test_two_at_once_download_it_once(site, path):
    threads = [
        threading.Thread(target=cache.download, args=(f"{site}/whole", path))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_whole(path)
    assert Handler.asked == [None]


def test_without_locks_each_has_a_file_of_its_own(site, path, monkeypatch):
    def lock(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(files.fcntl, "flock", lock)
    partial(path, BODY[:10])  # perhaps of another process
    cache.download(f"{site}/whole", path)
    assert path.read_bytes() == BODY
    assert partial(path).read_bytes() == BODY[:10]
