"""The process around a run: chief or worker, resuming, and the bookkeeping of failed starts."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.cli.bootstrap import import_tensorflow, memory_explained, peers_explained
from trainer.cli.console import Console, Quiet
from trainer.cli.paths import program
from trainer.distributed import ProcessGroup
from trainer.errors import DataError, StoppedError, TemporaryError, TrainerError, UnchangedError, UsageError
from trainer.runs import (
    RunFolder,
    borrow_run_folder,
    count_start,
    find_start,
    finished_folder,
    forget_start,
    has_rejected,
    open_run_folder,
)
from trainer.runs.publish import move_pointer
from trainer.shutdown import GracefulShutdown
from trainer.spec import RunSpec

if TYPE_CHECKING:
    from trainer.report.verdict import Verdict

_LESS_MEMORY = (
    "lower train.global_batch_size, data.image_size or the size of the model, with another --run-name"
)


@dataclass(frozen=True)
class Job:
    """One process of a training job."""

    spec: RunSpec
    cache_dir: Path
    console: Console
    stop: GracefulShutdown
    group: ProcessGroup

    def run(self, folder: RunFolder, screen: Console | Quiet) -> Verdict | None:
        """Train in `folder`; return the verdict on the chief and None on a worker."""
        # TensorFlow takes seconds to import, so the output that does not need it comes first.
        import_tensorflow()
        from trainer.run import run

        with memory_explained(_LESS_MEMORY), peers_explained(self.group):
            return run(self.spec, folder, self.cache_dir, screen, self.stop, self.group)


def run_chief(job: Job, fresh: bool) -> RunFolder:
    """Train and publish the run; return the run for the gates, an earlier one if nothing has changed.

    The lease of the returned folder is held. With `fresh`, an unfinished run starts again.
    """
    folder = open_run_folder(job.spec, datetime.now(timezone.utc), job.cache_dir, fresh, job.console)
    with ExitStack() as leave:
        leave.callback(folder.release)
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
        leave.pop_all()  # keep the lease until the gates have run
    return folder


def run_worker(job: Job) -> None:
    """Train with the chief, which writes the run folder and prints the progress."""
    run = json.loads(job.group.broadcast(b""))
    process = job.group.process
    name = process.name(process.process_index)
    job.console.on_fact("run", f"{run['name']}, as {name}; the chief tells how it goes")
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
        console.on_fact("latest", f"{latest}, which was published after this run")
    _print_paths(folder, console)


def _print_paths(folder: RunFolder, console: Console) -> None:
    console.line("")
    console.on_fact("report", folder.at("report.html"))
    console.on_fact("model", folder.at("model"))
    console.on_fact("try", f"{program()} predict {shlex.quote(folder.at(''))} PHOTO.jpg")


def _train(job: Job, folder: RunFolder) -> None:
    before = folder.newest_checkpoint
    count_start(folder.path, before, job.spec.train.max_stalled_starts)
    folder.keep()
    with _counted_start(job.stop, folder, before):
        if not before:
            find_start(folder.output, job.spec.train.start_from)  # fail before the data are downloaded
        _require_test_data(job.spec)
        verdict = job.run(folder, job.console)
        job.stop.ignore_signals()  # from here on a signal must not make a finished run exit as a stopped one
    if verdict is not None:
        job.console.verdict(verdict.headline, verdict.advice)


@contextmanager
def _counted_start(stop: GracefulShutdown, folder: RunFolder, before: str) -> Iterator[None]:
    """Take back the count of this start if it ends in an error with a remedy, or by Ctrl-C.

    `before` is the newest checkpoint at the start. A run that has written nothing of use is removed.
    """
    try:
        yield
    except StoppedError as error:
        if stop.interactive and folder.newest_checkpoint == before:
            _forget_start(folder)  # unlike a preemption, Ctrl-C does not count
        again = f"{program()} train {shlex.quote(folder.at('spec.yaml'))}"
        raise StoppedError(f"{error} Continue with: {again}") from None
    except (UsageError, DataError, TemporaryError):
        others = _forget_start(folder)
        if not (others or before or folder.newest_checkpoint or has_rejected(folder.path)):
            with suppress(TrainerError):
                folder.discard()
        raise


def _forget_start(folder: RunFolder) -> int:
    """Remove this start from the stalled count; return the number of other starts, 1 if unknown."""
    with suppress(TrainerError):
        folder.require_lease()  # otherwise the last row belongs to another process
        others = forget_start(folder.path)
        folder.keep()
        return others
    return 1


def _require_test_data(spec: RunSpec) -> None:
    """Raise UsageError if the local images of publish.test_data are missing, before training."""
    path = spec.publish.test_data
    if spec.publish.release and path is not None and os.path.isabs(path) and not os.path.exists(path):
        raise UsageError(
            "The images that decide on a release aren't there; check publish.test_data.", received=path
        )
