"""File and object storage: every write to a user's path goes through this package.

`open_store` opens a `Store`: a folder (`folder`) or a bucket (`gcs`). `local` writes files atomically,
`locks` has locks and folders that several processes share, `lease` is the right to write to a run, `mirror`
copies a folder to a store, and `temporary` makes temporary folders.
"""

from pathlib import Path

from trainer.errors import UsageError
from trainer.sanitize import shown_address
from trainer.storage.local import (
    append_line,
    create_bytes,
    hash_file,
    is_temporary,
    prepare_folder,
    sync_folder,
    translate_errors,
    write_all,
    write_bytes,
    write_json,
    write_text,
)
from trainer.storage.locks import build_once, exclusive, private_folder
from trainer.storage.store import Store, is_bucket, require_uri, split_uri, without_scheme

__all__ = [
    "append_line",
    "build_once",
    "create_bytes",
    "exclusive",
    "hash_file",
    "is_temporary",
    "open_store",
    "prepare_folder",
    "private_folder",
    "sync_folder",
    "translate_errors",
    "write_all",
    "write_bytes",
    "write_json",
    "write_text",
]


def open_store(uri: str) -> Store:
    """Return the store at `uri`, a path or gs://BUCKET/PREFIX, without accessing it.

    Raises UsageError for any other URI.
    """
    require_uri(uri)
    if is_bucket(uri):
        # Lazy import: the client takes a second to load, and most runs use no bucket.
        from trainer.storage.gcs import BucketStore

        return BucketStore(*split_uri(uri))
    from trainer.storage.folder import FolderStore

    try:
        return FolderStore(Path(without_scheme(uri)).expanduser())
    except RuntimeError:
        raise UsageError(
            "The home folder of this user does not exist.", "Check the path.", received=shown_address(uri)
        ) from None
