"""Corpora by name and by path; downloads come from a server on this machine."""

import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from experiments.shared import corpora
from experiments.shared.corpora import CorpusError, load_corpus

BOOK = b"\xef\xbb\xbfDown the Rabbit-Hole\r\nna\xc3\xafve\r\n"
TEXT = "Down the Rabbit-Hole\nnaïve\n"
PAGES = {
    "/truncated": BOOK, "/empty": b"", "/latin": b"don\x92t",
    "/login": b"\n<!DOCTYPE html><title>Log in</title>",
}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        body = self.server.pages.get(self.path)
        self.send_response(404 if body is None else 200)
        missing = 100 if self.path == "/truncated" else 0
        self.send_header("Content-Length", str(len(body or b"") + missing))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    # A proxy of this machine must not see requests to itself.
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.pages = {"/alice": BOOK, **PAGES}
        server.requests = []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(corpora, "ALICE_URL", f"{server.url}/alice")
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RNNJAX_CACHE", str(tmp_path / "deep" / "cache"))
    return tmp_path / "deep" / "cache"


@pytest.fixture
def book(tmp_path):
    return tmp_path / "book.txt"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def refused(source, **options):
    """The message, which must be one sentence, with nothing of the cause for a user to see."""
    with pytest.raises(CorpusError) as caught:
        load_corpus(source, **options)
    error = caught.value
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    assert "\n" not in str(error)
    return str(error)


# Files


def test_a_path_may_bear_the_name_of_a_corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("alice").write_bytes(BOOK)
    assert load_corpus(Path("alice")) == load_corpus("./alice") == TEXT


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("alcie", "must be 'alice', 'python-docs' or the path of a text file, but no file 'alcie'"),
        ("nul\0byte", "no file 'nul\\x00byte' exists"),
        ("file/book.txt", "no file"),
        (".", ". is a folder"),
        ("empty", "empty must hold text, but it is empty"),
        ("mark", "mark must hold text, but it is empty"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    for name, data in (("file", b"x"), ("empty", b""), ("mark", b"\xef\xbb\xbf")):
        Path(name).write_bytes(data)
    assert message in refused(source)


ENCODINGS = ["utf-8", "utf-16", "utf-32", "utf-8-sig", "cp1252", "shift_jis"]


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_text_is_the_same_whatever_pieces_it_is_read_in(book, monkeypatch, encoding, size):
    """A piece may end inside of a character, of a line end, or of the byte-order mark."""
    monkeypatch.setattr(corpora, "_PIECE", size)
    text = "a\r\nb\rc\r\r\n\r"
    text += {"cp1252": "né\n", "shift_jis": "字\n"}.get(encoding, "né字🐇\ufeff\n")
    for mark in ("", "\ufeff") if encoding.startswith("utf") else ("",):
        book.write_bytes((mark + text).encode(encoding))
        pieces = list(corpora.corpus_pieces(book, encoding=encoding))
        assert "".join(pieces) == text.replace("\r\n", "\n")
        assert all(0 < len(piece) <= size for piece in pieces)
    if encoding in ("utf-16", "utf-32"):
        data = "né字🐇".encode(encoding)[int(encoding[-2:]) // 8 :]
        book.write_bytes(data)
        assert load_corpus(book, encoding=encoding) == data.decode(encoding) == "né字🐇"


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("utf-8", b"\xef\xbb\xbfn\xc3\xa9 \xe5\xad\xff"),
        ("utf-16", b"\xff\xfea\x00\x00\xd8b\x00"),
        ("ascii", b"abc\xe9"),
    ],
)
def test_the_offset_of_an_error_is_that_in_the_file(book, monkeypatch, encoding, data):
    monkeypatch.setattr(corpora, "_PIECE", 1)
    book.write_bytes(data)
    with pytest.raises(UnicodeDecodeError) as error:
        data.decode(encoding)
    for other in ("hex", "base64", "no such"):
        assert "must be one that Python knows" in refused(book, encoding=other)
    at = error.value.start
    assert f"the byte 0x{data[at]:02x} at offset {at} is not" in refused(book, encoding=encoding)


# Licences

LICENSED = (
    "Title: Alice\n*** START OF THIS PROJECT GUTENBERG EBOOK ALICE ***\n\nOnce\n"
    "*** END OF THIS PROJECT GUTENBERG EBOOK ALICE ***\n*** START: FULL LICENSE ***\n"
)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (LICENSED.replace("\n", "\r\n"), "\nOnce\n"),
        (LICENSED.replace("*** START OF", "***START OF").replace("*** END", "***END"), "\nOnce\n"),
        (LICENSED.replace("BOOK ALICE", "BOOK ALICE'S ADVENTURES\nIN *THE* GARDEN"), "\nOnce\n"),
        ("*** START OF IT ***\nOnce\n* * *\nagain", "Once\n* * *\nagain"),
        ("*** END OF A ***\n*** START OF IT ***\nOnce", "Once"),
        ("*** START OF IT ***", ""),
        *(
            (text, None)
            for text in ("Once", "*** START: FULL LICENSE ***\n", "a *** START OF b ***")
        ),
    ],
)
def test_strip_licence_keeps_what_lies_between_the_markers(book, text, kept):
    book.write_bytes(text.encode())
    if kept is None:
        said = refused(book, strip_licence=True)
        assert f"needs a line '*** START OF ... ***', but {str(book)!r} has none" in said
    else:
        assert load_corpus(book, strip_licence=True) == kept
    assert load_corpus(book) == text.replace("\r\n", "\n")


# The documentation inside CPython


def test_python_docs_are_the_topics_in_order():
    topics = pytest.importorskip("pydoc_data.topics", exc_type=ImportError).topics
    text = load_corpus("python-docs")
    assert text == "\n\n".join(text for _, text in sorted(topics.items()))
    assert len(text) > 100_000


# Downloads


def test_a_download_is_silent_and_cached(server, cache, capfd, caplog):
    caplog.set_level(logging.INFO)
    assert load_corpus("alice") == TEXT
    assert (*capfd.readouterr(), caplog.records) == ("", "", [])
    assert names(cache) == ["alice.txt"]
    assert (cache / "alice.txt").read_bytes() == BOOK
    # From there on it takes no network.
    server.pages.clear()
    assert load_corpus("alice") == TEXT
    assert server.requests == ["/alice"]


def test_the_default_cache_is_that_of_the_operating_system(server, cache, monkeypatch):
    monkeypatch.delenv("RNNJAX_CACHE")
    monkeypatch.setattr("pooch.os_cache", lambda project: cache / project)
    load_corpus("alice")
    assert names(cache / "rnnjax") == ["alice.txt"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("{}/missing", "failed (HTTP 404)"),
        ("{}/truncated", "failed (ChunkedEncodingError)"),
        ("http://127.0.0.1:1/alice", "failed (ConnectionError)"),  # a port that nobody listens to
        ("{}/empty", "is empty"),
        ("{}/latin", "offset 3"),
        ("{}/login", "a web page came"),
    ],
)
def test_a_failed_download_leaves_nothing(server, cache, monkeypatch, url, reason):
    url = url.format(server.url)
    monkeypatch.setattr(corpora, "ALICE_URL", url)
    message = refused("alice")
    assert url in message
    assert reason in message
    assert not cache.parent.exists()


def test_a_folder_that_cannot_be_written_is_told(server, cache):
    cache.parent.parent.joinpath("deep").write_text("a file")
    said = refused("alice")
    assert f"to {cache} failed (NotADirectoryError); check the network, name another folder" in said
