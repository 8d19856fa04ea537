"""Listings of a bucket: its objects, or the folders directly below a prefix."""

from __future__ import annotations

from typing import Any

from google.cloud import storage

from trainer.storage.store import Entry

_FIELDS = "items(name,size,generation,crc32c),nextPageToken"


def list_entries(bucket: storage.Bucket, prefix: str, start: int, how: dict[str, Any]) -> list[Entry]:
    """Return the objects whose names start with `prefix`, sorted by name.

    The first `start` characters are cut off the names. Placeholder objects of folders are skipped. An object
    without a size has size 0. Raises the client's errors.
    """
    blobs = bucket.client.list_blobs(bucket, prefix=prefix, fields=_FIELDS, **how)
    found = [
        Entry(blob.name[start:], blob.size or 0, str(blob.generation), blob.crc32c or "") for blob in blobs
    ]
    return sorted((each for each in found if not each.name.endswith("/")), key=lambda entry: entry.name)


def list_folders(bucket: storage.Bucket, prefix: str, how: dict[str, Any]) -> list[str]:
    """Return the path components that follow `prefix` up to the next slash, sorted.

    The bucket groups the names itself, so the objects are not listed. Raises the client's errors.
    """
    fields = "prefixes,nextPageToken"
    listing = bucket.client.list_blobs(bucket, prefix=prefix, delimiter="/", fields=fields, **how)
    found = {each for page in listing.pages for each in page.prefixes}
    return sorted(each[len(prefix) :].rstrip("/") for each in found)
