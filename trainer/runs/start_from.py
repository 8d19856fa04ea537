"""Selection of the finished run whose weights a new run starts from (train.start_from)."""

from __future__ import annotations

from trainer.errors import UsageError
from trainer.runs.champion import read_champion
from trainer.runs.integrity import require_as_published
from trainer.runs.publish import find_run, is_finished, latest_run
from trainer.runs.validate import require_not_withdrawn
from trainer.spec.schema import CHAMPION, LATEST, SCRATCH
from trainer.storage.store import Store


def find_start(output: Store, start_from: str) -> Store | None:
    """Return the finished run of `output` that a new run starts from; None for random initialization.

    None also if there is no latest run or no champion yet, as in the first run of a schedule. Raises
    UsageError for a run that does not exist or is not finished, DataError for one whose files changed since
    publication.
    """
    run = _find(output, start_from)
    if run is not None:
        require_as_published(run, digests=False)
    return run


def _find(output: Store, start_from: str) -> Store | None:
    if start_from == SCRATCH:
        return None
    if start_from in (LATEST, CHAMPION):
        name = latest_run(output) if start_from == LATEST else read_champion(output).name
        return output.below(name) if name else None
    run = find_run(start_from)
    require_not_withdrawn(run)
    if not is_finished(run):
        raise UsageError(
            "train.start_from is scratch, latest, champion, or the folder of a finished run.",
            received=run.uri,
        )
    return run
