"""File and object storage: every write to a user's path goes through this package.

`local` writes files atomically. `locks` provides locks and folders that several processes share.
"""

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

__all__ = [
    "append_line",
    "build_once",
    "create_bytes",
    "exclusive",
    "hash_file",
    "is_temporary",
    "prepare_folder",
    "private_folder",
    "sync_folder",
    "translate_errors",
    "write_all",
    "write_bytes",
    "write_json",
    "write_text",
]
