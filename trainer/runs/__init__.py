"""Run folder: its location, the lease that protects it, and its small metadata files."""

from trainer.runs.champion import find_start
from trainer.runs.dedupe import find_earlier, find_same_run, read_weights
from trainer.runs.files import (
    IMAGES,
    Start,
    count_start,
    current_command,
    forget_start,
    has_rejected,
    read_images,
    read_precision,
    read_start_weights,
    read_started_from,
    require_complete,
    require_same_start,
    write_environment,
    write_rejected,
)
from trainer.runs.folder import (
    RunFolder,
    borrow_run_folder,
    find_finished_run,
    finished_folder,
    lease_of,
    open_run_folder,
)
from trainer.runs.validate import require_not_withdrawn, require_outside_runs

__all__ = [
    "IMAGES",
    "RunFolder",
    "Start",
    "borrow_run_folder",
    "count_start",
    "current_command",
    "find_earlier",
    "find_finished_run",
    "find_same_run",
    "find_start",
    "finished_folder",
    "forget_start",
    "has_rejected",
    "lease_of",
    "open_run_folder",
    "read_images",
    "read_precision",
    "read_start_weights",
    "read_started_from",
    "read_weights",
    "require_complete",
    "require_not_withdrawn",
    "require_outside_runs",
    "require_same_start",
    "write_environment",
    "write_rejected",
]
