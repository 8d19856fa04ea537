"""Downloads of Cloud Storage objects over real HTTP: complete, damaged, truncated, compressed and failed."""

from __future__ import annotations

import gzip
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import google_crc32c
import pytest
import requests
import urllib3
from google.api_core import exceptions as api
from google.cloud.storage.exceptions import DataCorruption
from helpers.serving import serving

from trainer.storage.checksums import as_text
from trainer.storage.gcs import fetch_media

DATA = bytes(range(256)) * 9000


def _hashed(data: bytes) -> dict[str, str]:
    return {"X-Goog-Hash": f"crc32c={as_text(int(google_crc32c.value(data)))},md5=AAAA"}


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        packed = gzip.compress(DATA)
        status, headers, body = {
            "/whole": (200, _hashed(DATA), DATA),
            "/empty": (200, _hashed(b""), b""),
            "/damaged": (200, _hashed(DATA), DATA[:-1] + b"x"),
            "/cut": (200, _hashed(DATA), DATA[:-1]),
            "/packed": (200, {**_hashed(packed), "Content-Encoding": "gzip"}, packed),
            "/unhashed": (200, {}, DATA),
        }.get(self.path, (int(self.path[1:]) if self.path[1:].isdigit() else 404, {}, b"no"))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) + (self.path == "/cut")))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)


def fetch(path: str, target: Path) -> bool:
    with serving(_Server()) as server, requests.Session() as session:
        return fetch_media(session, f"http://127.0.0.1:{server.server_address[1]}/{path}", target, 5.0)


@pytest.mark.parametrize(("path", "data"), [("whole", DATA), ("empty", b"")])
def test_object_is_downloaded_and_verified(path: str, data: bytes, tmp_path: Path) -> None:
    assert fetch(path, tmp_path / "object")
    assert (tmp_path / "object").read_bytes() == data


@pytest.mark.parametrize("path", ["packed", "unhashed"])
def test_object_without_a_usable_checksum_is_left_to_the_client(path: str, tmp_path: Path) -> None:
    assert not fetch(path, tmp_path / "object")
    assert not (tmp_path / "object").exists()


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("damaged", DataCorruption),
        ("cut", urllib3.exceptions.ProtocolError),
        ("404", api.NotFound),
        ("412", api.PreconditionFailed),
        ("503", api.ServiceUnavailable),
    ],
)
def test_incomplete_download_raises_the_error_of_the_client(
    path: str, error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(error):
        fetch(path, tmp_path / "object")
