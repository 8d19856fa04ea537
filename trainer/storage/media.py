"""The bytes of an object, by the client's own session.

In: a session and an object's address. Out: a file that holds the object, compared with its
checksum. The client's download does the same in twice the time of the processor, which for many small
objects is what limits.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import google_crc32c
from google.api_core import exceptions as api
from google.cloud.storage.exceptions import DataCorruption

from trainer.storage.checksums import as_text
from trainer.storage.local import write_all

_CHUNK_BYTES = 1 << 20
_CHECKSUM = re.compile(r"crc32c=([A-Za-z0-9+/=]+)")


def fetch_media(session: Any, url: str, path: Path, timeout_seconds: float) -> bool:
    """Write what is at `url` to `path`; return False, with nothing written, if the client has to do it.

    That is an object that is kept compressed, which the client unpacks, or one of unknown checksum.
    Raises what the client's own download raises, DataCorruption for other bytes than the object's.
    """
    # Asked for as it is kept: unpacked on the way it would no longer fit its checksum.
    headers = {"Accept-Encoding": "gzip"}
    with session.get(url, headers=headers, timeout=timeout_seconds, stream=True) as reply:
        if reply.status_code != 200:
            raise api.from_http_response(reply)  # type: ignore[no-untyped-call]
        expected = _CHECKSUM.search(reply.headers.get("X-Goog-Hash", ""))
        if expected is None or reply.headers.get("Content-Encoding"):
            return False
        crc32c = 0
        with open(path, "wb", buffering=0) as file:
            while chunk := reply.raw.read(_CHUNK_BYTES):
                crc32c = int(google_crc32c.extend(crc32c, chunk))
                write_all(file, chunk)
    if as_text(crc32c) != expected[1]:
        raise DataCorruption(None, f"its crc32c is {expected[1]}, that of what arrived {as_text(crc32c)}")
    return True
