"""Corpora by name and by path; downloads come from a server on this machine."""

import hashlib
import logging
import os
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from experiments.text_tools import corpora
from experiments.text_tools.corpora import CorpusError, load_corpus

BOOK = b"\xef\xbb\xbfDown the Rabbit-Hole\r\nna\xc3\xafve\r\n"
TEXT = "Down the Rabbit-Hole\nnaïve\n"


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
        server.pages = {"/alice": BOOK, "/truncated": BOOK}
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
    monkeypatch.delenv("RNNJAX_CACHE", raising=False)
    return tmp_path / "deep" / "cache"


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


def test_a_file_loses_its_byte_order_mark_and_carriage_returns(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(BOOK)
    assert load_corpus(path) == load_corpus(str(path)) == TEXT


def test_only_line_ends_are_normalised(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(b"a\rb\r\nc\n\xef\xbb\xbfd")
    assert load_corpus(path) == "a\rb\nc\n\ufeffd"


def test_a_path_may_bear_the_name_of_a_corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("alice").write_text("mine", encoding="utf-8")
    assert load_corpus(Path("alice")) == "mine"


@pytest.mark.parametrize("source", ["alcie", Path("no", "such.txt"), "nul\0byte"])
def test_a_missing_file_names_the_corpora(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(source)
    assert "'alice', 'python-docs'" in message
    assert f"no file {str(source)!r} exists" in message


def test_a_file_taken_for_a_folder_is_missing(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    assert "no file" in refused(tmp_path / "file" / "book.txt")


def test_a_folder_is_refused(tmp_path):
    assert f"{tmp_path} is a folder" in refused(tmp_path)


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path, data):
    path = tmp_path / "book.txt"
    path.write_bytes(data)
    assert f"{path} must hold text, but it is empty" in refused(path)


@pytest.mark.parametrize(
    ("data", "where"),
    [(b"don\x92t", "0x92 at offset 3"), (b"\xef\xbb\xbfdon\x92t", "0x92 at offset 6")],
)
def test_an_undecodable_file_is_refused_with_the_offset(tmp_path, data, where):
    path = tmp_path / "book.txt"
    path.write_bytes(data)
    assert where in refused(path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permission bits")
def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    def deny(self, mode):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", deny)
    assert "Permission denied" in refused(tmp_path / "book.txt")


ENCODINGS = ["utf-8", "utf-16", "utf-32", "utf-8-sig", "utf-7", "cp1252", "shift_jis", "gb18030"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_text_is_the_same_whatever_pieces_it_is_read_in(tmp_path, monkeypatch, encoding, size):
    """A piece may end inside of a character, of a line end, or of the byte-order mark."""
    monkeypatch.setattr(corpora, "_PIECE", size)
    text = "a\r\nb\rc\r\r\n\r"
    text += {"cp1252": "né\n", "shift_jis": "字\n"}.get(encoding, "né字🐇\ufeff\n")
    path = tmp_path / "book.txt"
    for mark in ("", "\ufeff") if encoding.startswith("utf") else ("",):
        path.write_bytes((mark + text).encode(encoding))
        pieces = list(corpora.corpus_pieces(path, encoding=encoding))
        assert "".join(pieces) == text.replace("\r\n", "\n")
        assert all(0 < len(piece) <= size for piece in pieces)
    if encoding in ("utf-16", "utf-32"):
        data = "né字🐇".encode(encoding)[int(encoding[-2:]) // 8 :]
        path.write_bytes(data)
        assert load_corpus(path, encoding=encoding) == data.decode(encoding) == "né字🐇"


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("utf-8", b"\xef\xbb\xbfn\xc3\xa9 \xe5\xad\xff"),
        ("utf-8", b"n\xc3\xa9 \xe5\xad"),
        ("utf-16", b"\xff\xfea\x00b\x00c"),
        ("utf-16", b"\xff\xfea\x00\x00\xd8b\x00"),
        ("ascii", b"abc\xe9"),
        ("shift_jis", b"ab\x8e\x9a\xff"),
    ],
)
def test_the_offset_of_an_error_is_that_in_the_file(tmp_path, monkeypatch, encoding, data, size):
    monkeypatch.setattr(corpora, "_PIECE", size)
    path = tmp_path / "book.txt"
    path.write_bytes(data)
    with pytest.raises(UnicodeDecodeError) as error:
        data.decode(encoding)
    at = error.value.start
    assert f"the byte 0x{data[at]:02x} at offset {at} is not" in refused(path, encoding=encoding)


@pytest.mark.parametrize("encoding", ["hex", "base64", "no such"])
def test_what_is_no_encoding_of_text_is_refused(tmp_path, encoding):
    path = tmp_path / "book.txt"
    path.write_bytes(b"00")
    assert "must be one that Python knows" in refused(path, encoding=encoding)


# Licences

LICENSED = (
    "Title: Alice\n*** START OF THIS PROJECT GUTENBERG EBOOK ALICE ***\n\nOnce\n"
    "*** END OF THIS PROJECT GUTENBERG EBOOK ALICE ***\n*** START: FULL LICENSE ***\n"
)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (LICENSED, "\nOnce\n"),
        (LICENSED.replace("\n", "\r\n"), "\nOnce\n"),
        (LICENSED.replace("*** START OF", "***START OF").replace("*** END", "***END"), "\nOnce\n"),
        (LICENSED.replace("BOOK ALICE", "BOOK ALICE'S ADVENTURES\nIN *THE* GARDEN"), "\nOnce\n"),
        ("*** START OF IT ***\nOnce\n* * *\nagain", "Once\n* * *\nagain"),
        ("*** END OF A ***\n*** START OF IT ***\nOnce", "Once"),
        ("*** START OF IT ***", ""),
    ],
    ids=["new", "crlf", "old", "wrapped title", "no end", "end before start", "nothing"],
)
def test_strip_licence_keeps_what_lies_between_the_markers(tmp_path, text, kept):
    path = tmp_path / "book.txt"
    path.write_bytes(text.encode())
    assert load_corpus(path, strip_licence=True) == kept
    assert load_corpus(path) == text.replace("\r\n", "\n")


@pytest.mark.parametrize("text", ["Once", "*** START: FULL LICENSE ***\n", "a *** START OF b ***"])
def test_strip_licence_needs_a_start(tmp_path, text):
    path = tmp_path / "book.txt"
    path.write_text(text, encoding="utf-8")
    message = refused(path, strip_licence=True)
    assert "*** START OF ... ***" in message
    assert str(path) in message


# The documentation inside CPython


def test_python_docs_are_the_topics_in_order():
    topics = pytest.importorskip("pydoc_data.topics", exc_type=ImportError).topics
    text = load_corpus("python-docs")
    assert text == "\n\n".join(text for _, text in sorted(topics.items()))
    assert len(text) > 100_000


def test_python_docs_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert "ships without it" in refused("python-docs")


# Downloads


def test_download_is_cached_with_its_checksum(server, cache):
    assert load_corpus("alice", cache_dir=cache) == TEXT
    assert names(cache) == ["alice.txt", "alice.txt.sha256"]
    assert (cache / "alice.txt").read_bytes() == BOOK
    line = f"{hashlib.sha256(BOOK).hexdigest()}  alice.txt\n".encode()
    assert (cache / "alice.txt.sha256").read_bytes() == line
    assert server.requests == ["/alice"]


def test_cached_text_needs_no_network(server, cache):
    load_corpus("alice", cache_dir=cache)
    server.pages.clear()
    assert load_corpus("alice", cache_dir=cache) == TEXT
    assert server.requests == ["/alice"]


def test_cached_text_needs_no_pooch(server, cache, monkeypatch):
    load_corpus("alice", cache_dir=cache)
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert load_corpus("alice", cache_dir=cache) == TEXT


def test_download_is_silent(server, cache, capfd, caplog):
    caplog.set_level(logging.INFO)
    load_corpus("alice", cache_dir=cache)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert not caplog.records


def test_the_environment_names_the_cache(server, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("RNNJAX_CACHE", str(cache))
    load_corpus("alice")
    assert names(cache) == ["alice.txt", "alice.txt.sha256"]
    load_corpus("alice", cache_dir=tmp_path / "nearer")  # the argument goes before it
    assert names(tmp_path / "nearer") == names(cache)


def test_the_default_cache_is_that_of_the_operating_system(server, cache, monkeypatch):
    monkeypatch.setattr("pooch.os_cache", lambda project: cache / project)
    load_corpus("alice")
    assert names(cache / "rnnjax") == ["alice.txt", "alice.txt.sha256"]


@pytest.mark.parametrize("damage", ["text", "checksum", "empty checksum", "no checksum"])
def test_damaged_cache_is_refused_until_deleted(server, cache, damage):
    load_corpus("alice", cache_dir=cache)
    path, checksum = cache / "alice.txt", cache / "alice.txt.sha256"
    if damage == "text":
        path.write_bytes(BOOK[:-1])
    elif damage == "checksum":
        checksum.write_bytes(b"\xff0  alice.txt\n")
    elif damage == "empty checksum":
        checksum.write_bytes(b"")
    else:
        checksum.unlink()
    for _ in range(2):  # a refusal repairs nothing behind one's back
        assert f"delete {path} " in refused("alice", cache_dir=cache)
    assert server.requests == ["/alice"]
    path.unlink()
    assert load_corpus("alice", cache_dir=cache) == TEXT
    assert load_corpus("alice", cache_dir=cache) == TEXT


@pytest.mark.parametrize(
    ("page", "reason"), [("/missing", "HTTP 404"), ("/truncated", "ChunkedEncodingError")]
)
def test_failed_download_leaves_nothing(server, cache, monkeypatch, page, reason):
    monkeypatch.setattr(corpora, "ALICE_URL", server.url + page)
    message = refused("alice", cache_dir=cache)
    assert f"the download of {server.url}{page} failed ({reason})" in message
    assert "save the text by hand and give the path" in message
    assert not cache.parent.exists()


def test_closed_port_leaves_nothing(cache, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setattr(corpora, "ALICE_URL", f"http://127.0.0.1:{port}/alice")
    message = refused("alice", cache_dir=cache)
    assert "failed (ConnectionError)" in message
    assert "save the text by hand and give the path" in message
    assert not cache.parent.exists()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "is empty"),
        (b"don\x92t", "offset 3"),
        (b"\n<!DOCTYPE html><title>Log in</title>", "a web page came"),
    ],
)
def test_a_download_that_is_no_text_is_not_cached(server, cache, body, reason):
    server.pages["/alice"] = body
    assert reason in refused("alice", cache_dir=cache)
    assert not cache.parent.exists()


def test_failed_write_leaves_nothing(server, cache, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    message = refused("alice", cache_dir=cache)
    assert "No space left on device" in message
    assert "RNNJAX_CACHE" in message
    assert names(cache) == []


def test_without_pooch_the_install_line_is_given(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert "pip install 'rnnjax[experiments]'" in refused("alice", cache_dir=cache)
    assert "pip install 'rnnjax[experiments]'" in refused("alice")
    assert not cache.parent.exists()
