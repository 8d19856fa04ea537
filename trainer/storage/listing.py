"""What lies in a bucket, as its listings tell.

In: the client's bucket and the beginning of names. Out: entries, or the folders directly below.
"""

from __future__ import annotations

from typing import Any

from google.cloud import storage

from trainer.storage.store import Entry

_FIELDS = "items(name,size,generation,crc32c),nextPageToken"


def list_entries(bucket: storage.Bucket, prefix: str, start: int, how: dict[str, Any]) -> list[Entry]:
    """Return the objects whose names begin with `prefix`, named from `start` on, sorted.

    Without those that stand for folders. An object without a size is empty. Raises the client's errors.
    """
    blobs = bucket.client.list_blobs(bucket, prefix=prefix, fields=_FIELDS, **how)
    found = [
        Entry(blob.name[start:], blob.size or 0, str(blob.generation), blob.crc32c or "") for blob in blobs
    ]
    return sorted((each for each in found if not each.name.endswith("/")), key=lambda entry: entry.name)


def list_folders(bucket: storage.Bucket, prefix: str, how: dict[str, Any]) -> list[str]:
    """Return what stands before the next slash of names that begin with `prefix`, sorted.

    The bucket sums it up: the objects themselves are not asked for. Raises the client's errors.
    """
    fields = "prefixes,nextPageToken"
    listing = bucket.client.list_blobs(bucket, prefix=prefix, delimiter="/", fields=fields, **how)
    found = {each for page in listing.pages for each in page.prefixes}
    return sorted(each[len(prefix) :].rstrip("/") for each in found)
