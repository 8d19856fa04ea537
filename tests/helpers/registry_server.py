"""Local image registry limited to push and inspect by a Docker engine."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from helpers.serving import serving

_PATH = re.compile(r"/v2/(?P<name>.+)/(?P<kind>blobs/uploads|blobs|manifests)/(?P<reference>[^/]*)$")


class Registry:
    """Blobs and manifests of the registry."""

    def __init__(self) -> None:
        self.address = ""
        """HOST:PORT; engines use http:// for a registry on loopback."""
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        """Media type and content, by NAME:TAG and NAME:DIGEST."""
        self.uploads: dict[str, bytes] = {}
        self.is_closed = False
        """Whether every request is rejected with 401."""


@contextmanager
def registry_server() -> Iterator[Registry]:
    registry = Registry()
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), _handler(registry))) as server:
        registry.address = f"127.0.0.1:{server.server_address[1]}"
        yield registry


class _Handler(BaseHTTPRequestHandler):
    registry: Registry

    protocol_version = "HTTP/1.1"

    def _handle(self, method: str) -> None:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        body = self._body()
        match = _PATH.match(path)
        if self.registry.is_closed:
            self._refuse(401, "UNAUTHORIZED", "authentication required")
        elif match is None:
            self._answer(200, b"{}")
        elif match["kind"] == "manifests":
            self._manifest(method, match["name"], match["reference"], body)
        elif match["kind"] == "blobs":
            blob = self.registry.blobs.get(match["reference"])
            if blob is None:
                self._refuse(404, "BLOB_UNKNOWN", "blob unknown to registry")
            else:
                self._answer(200, blob, {"Docker-Content-Digest": match["reference"]})
        else:
            self._upload(method, match["name"], match["reference"], body, query.get("digest", [""])[0])

    do_GET = partialmethod(_handle, "GET")  # noqa: N815
    do_HEAD = partialmethod(_handle, "HEAD")  # noqa: N815
    do_POST = partialmethod(_handle, "POST")  # noqa: N815
    do_PATCH = partialmethod(_handle, "PATCH")  # noqa: N815
    do_PUT = partialmethod(_handle, "PUT")  # noqa: N815

    def _upload(self, method: str, name: str, upload: str, body: bytes, digest: str) -> None:
        upload = upload or secrets.token_hex(8)
        content = self.registry.uploads.pop(upload, b"") + body
        if method == "PUT":
            assert digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
            self.registry.blobs[digest] = content
            self._answer(201, b"", {"Docker-Content-Digest": digest})
            return
        self.registry.uploads[upload] = content
        headers = {
            "Location": f"/v2/{name}/blobs/uploads/{upload}",
            "Range": f"0-{max(0, len(content) - 1)}",
        }
        self._answer(202, b"", headers | {"Docker-Upload-UUID": upload})

    def _manifest(self, method: str, name: str, reference: str, body: bytes) -> None:
        if method == "PUT":
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
            for key in (reference, digest):
                self.registry.manifests[f"{name}:{key}"] = (self.headers["Content-Type"], body)
            self._answer(201, b"", {"Docker-Content-Digest": digest})
            return
        kind, content = self.registry.manifests.get(f"{name}:{reference}", ("", b""))
        if not kind:
            self._refuse(404, "MANIFEST_UNKNOWN", "manifest unknown")
            return
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self._answer(200, content, {"Docker-Content-Digest": digest, "Content-Type": kind})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _refuse(self, status: int, code: str, message: str) -> None:
        asks = {"WWW-Authenticate": 'Basic realm="registry"'} if status == 401 else {}
        body = {"errors": [{"code": code, "message": message}]}
        self._answer(status, json.dumps(body).encode(), asks)

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        default_headers = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        for name, value in (
            default_headers | {"Docker-Distribution-Api-Version": "registry/2.0"} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def _handler(registry: Registry) -> type[_Handler]:
    """Return the request handler class for this server's state."""
    return type("_Handler", (_Handler,), {"registry": registry})
