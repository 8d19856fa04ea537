"""JSON objects in a store that may be torn, of another version, or not there."""

from __future__ import annotations

import json
from typing import Any

from trainer.storage.store import Store


def read_object(store: Store, name: str) -> dict[str, Any]:
    """Return the JSON object that `name` holds; an empty one if there is none or it can't be read."""
    found = store.read(name)
    try:
        value = json.loads(found.data) if found else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
