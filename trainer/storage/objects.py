"""JSON objects in a store that may be truncated, of another version, or missing."""

from __future__ import annotations

import json
from typing import Any

from trainer.storage.store import Store


def read_object(store: Store, name: str) -> dict[str, Any]:
    """Return the JSON object in `name`, or an empty one if it is missing or invalid."""
    found = store.read(name)
    try:
        value = json.loads(found.data) if found else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
