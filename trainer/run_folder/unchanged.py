"""Whether a run would only do again what the newest finished one did.

In: the store of all runs, a spec, and the digest of its data. Out: the name of that run.
"""

from __future__ import annotations

import json

from trainer.exits import UsageError
from trainer.publish import latest_run
from trainer.spec import RunSpec, parse_spec, spec_digest
from trainer.storage.store import Store


def find_same_run(output: Store, spec: RunSpec, data_digest: str) -> str:
    """Return the newest finished run if it is of an equal spec and equal data; else nothing.

    data_digest: SHA-256 of the data set, 64 hex digits. Raises TemporaryError.
    """
    name = latest_run(output)
    if name is None:
        return ""
    run = output.below(name)
    dataset, text = run.read("dataset.json"), run.read("spec.yaml")
    if dataset is None or text is None:
        return ""
    try:
        is_same_data = json.loads(dataset.data)["digest"] == f"sha256:{data_digest}"
        before = parse_spec(text.data.decode(), run.at("spec.yaml"))
    except (ValueError, KeyError, TypeError, UsageError):
        return ""  # of another version of this program
    return name if is_same_data and spec_digest(before) == spec_digest(spec) else ""
