"""The process around a run: chief or worker, resuming, and the bookkeeping of failed starts."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.cli.bootstrap import import_tensorflow, translate_memory_errors, translate_peer_errors
from trainer.cli.console import Console, Quiet
from trainer.cli.paths import program, require_inputs
from trainer.distributed import ProcessGroup
from trainer.errors import DataError, StoppedError, TemporaryError, TrainerError, UnchangedError, UsageError
from trainer.runs import (
    RunFolder,
    borrow_run_folder,
    count_start,
    find_finished_run,
    find_start,
    finished_folder,
    forget_start,
    has_rejected,
    open_run_folder,
)
from trainer.runs.publish import move_pointer
from trainer.sanitize import without_secrets
from trainer.shutdown import GracefulShutdown
from trainer.spec import RunSpec
from trainer.storage.local import write_text

if TYPE_CHECKING:
    from trainer.report.verdict import Verdict

_LESS_MEMORY = (
    "Lower train.global_batch_size, data.image_size or the size of the model, with another --run-name."
)
_ERROR_FILE = "error.txt"
"""File of an unfinished run that states why its last start failed."""


@dataclass(frozen=True)
class Job:
    """One process of a training job."""

    spec: RunSpec
    cache_dir: Path
    console: Console
    shutdown: GracefulShutdown
    group: ProcessGroup

    def run(self, folder: RunFolder, screen: Console | Quiet) -> Verdict | None:
        """Train in `folder`; return the verdict on the chief and None on a worker."""
        # TensorFlow takes seconds to import, so the output that does not need it comes first.
        import_tensorflow()
        from trainer.run import run

        with translate_memory_errors(_LESS_MEMORY), translate_peer_errors(self.group):
            return run(self.spec, folder, self.cache_dir, screen, self.shutdown, self.group)


def run_chief(job: Job, fresh: bool) -> RunFolder:
    """Train and publish the run; return the run for the gates, an earlier one if nothing has changed.

    The lease of the returned folder is held. With `fresh`, an unfinished run starts again.
    """
    try:
        require_inputs(job.spec)  # before the run has a name and a folder
    except (UsageError, DataError):
        if find_finished_run(job.spec, fresh) is None:  # a finished run does not need them
            raise
    folder = open_run_folder(job.spec, datetime.now(timezone.utc), job.cache_dir, fresh, job.console)
    with ExitStack() as stack:
        stack.callback(folder.release)
        try:
            if not folder.finished:
                job.console.on_fact("run", folder.at(""))
            job.group.broadcast(json.dumps({"name": folder.name, "finished": folder.finished}).encode())
            if folder.finished:
                print_finished(folder, job.console)
            else:
                _train(job, folder)
                _print_paths(folder, job.console)
        except UnchangedError as error:
            folder.discard()
            job.console.line(str(error))
            return finished_folder(folder.output, error.run)
        except StoppedError:
            raise
        except Exception:
            folder.require_lease()  # a process that took over the run may be the cause
            raise
        stack.pop_all()  # keep the lease until the gates have run
    return folder


def run_worker(job: Job) -> None:
    """Train with the chief, which writes the run folder and prints the progress."""
    run = json.loads(job.group.broadcast(b""))
    process = job.group.process
    name = process.name(process.process_index)
    job.console.on_fact("run", f"{run['name']}, as {name}; the chief prints the progress")
    if run["finished"]:
        job.console.line("This run is finished; there is nothing to do.")
        return
    folder = borrow_run_folder(job.spec.output, run["name"], job.cache_dir)
    try:
        job.run(folder, Quiet(job.console))
    except UnchangedError as error:
        job.console.line(str(error))
    finally:
        folder.release()


def print_finished(folder: RunFolder, console: Console) -> None:
    """Print the paths of a finished run, and move the `latest` pointer if a crash has prevented it."""
    console.on_fact("run", folder.at(""))
    console.line("This run is finished; there is nothing to do.")
    latest = move_pointer(folder.output, folder.name)
    if latest != folder.name:
        console.on_fact("latest", f"{latest}, published after this run")
    _print_paths(folder, console)


def _print_paths(folder: RunFolder, console: Console) -> None:
    console.line("")
    console.on_fact("report", folder.at("report.html"))
    console.on_fact("model", folder.at("model"))
    console.on_fact("try", f"{program()} predict {shlex.quote(folder.at(''))} PHOTO.jpg")


def _train(job: Job, folder: RunFolder) -> None:
    before = folder.newest_checkpoint
    count_start(folder.path, before, job.spec.train.max_stalled_starts)
    (folder.path / _ERROR_FILE).unlink(missing_ok=True)
    folder.keep()
    with _counted_start(job.shutdown, folder, before):
        if not before:
            find_start(folder.output, job.spec.train.start_from)  # fail before the data are downloaded
        verdict = job.run(folder, job.console)
        # From here on a signal must not make a finished run exit as a stopped one.
        job.shutdown.ignore_signals()
    if verdict is not None:
        job.console.verdict(verdict.headline, verdict.advice)


@contextmanager
def _counted_start(shutdown: GracefulShutdown, folder: RunFolder, before: str) -> Iterator[None]:
    """Take back the count of this start if it ends in an error with a remedy, or by Ctrl-C.

    `before` is the newest checkpoint at the start. A failed run that has written nothing of use is removed,
    and any other one gets a file with the error.
    """
    try:
        yield
    except StoppedError as error:
        if shutdown.interactive and folder.newest_checkpoint == before:
            _forget_start(folder)  # unlike a preemption, Ctrl-C does not count
        command = f"{program()} train {shlex.quote(folder.at('spec.yaml'))}"
        raise StoppedError(str(error), f"Continue with: {command}") from None
    except UnchangedError:
        raise
    except (UsageError, DataError, TemporaryError) as error:
        other_starts = _forget_start(folder)
        if other_starts or before or folder.newest_checkpoint or has_rejected(folder.path):
            _write_error(folder, error)
        else:
            with suppress(TrainerError):
                folder.discard()
        raise
    except Exception as error:
        _write_error(folder, error)
        raise


def _forget_start(folder: RunFolder) -> int:
    """Remove this start from the stalled count; return the number of other starts, 1 if unknown."""
    with suppress(TrainerError):
        folder.require_lease()  # otherwise the last row belongs to another process
        other_starts = forget_start(folder.path)
        folder.keep()
        return other_starts
    return 1


def _write_error(folder: RunFolder, error: Exception) -> None:
    """Write why the run failed to its folder, without secrets; ignore errors."""
    exit_code = error.exit_code if isinstance(error, TrainerError) else TrainerError.exit_code
    message = without_secrets(str(error)) or type(error).__name__
    time = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with suppress(TrainerError, OSError):
        folder.require_lease()
        write_text(folder.path / _ERROR_FILE, f"{time}  exit code {exit_code}\n{message}\n")
        folder.keep()
