"""Implementation of `trainer train`: a run with console output and signal handling.

The output ends with the locations of the report and the model.
"""

from __future__ import annotations

import json
import os
import shlex
import threading
from contextlib import ExitStack, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import __version__
from trainer.cli.choose import chosen_spec
from trainer.cli.console import Console, Quiet
from trainer.cli.environment import (
    import_tensorflow,
    memory_explained,
    peers_explained,
    require_tensorflow,
    write_last_words,
)
from trainer.cli.judge import judge
from trainer.cli.places import program
from trainer.exits import (
    DataError,
    StoppedError,
    TemporaryError,
    TrainerError,
    UnchangedError,
    UsageError,
)
from trainer.hosts import Peers, Place, meet
from trainer.printable import without_secrets
from trainer.publish import move_pointer
from trainer.run_folder import (
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
from trainer.spec import RunSpec, spec_digest
from trainer.stop import Stop

if TYPE_CHECKING:
    from trainer.report.verdict import Verdict

_END_SECONDS = 8.0
_LESS_MEMORY = (
    "lower train.global_batch_size, data.image_size or the size of the model, with another --run-name"
)


def train_command(
    spec: RunSpec,
    cache_dir: Path,
    fresh: bool,
    stop: Stop,
    place: Place,
    accuracy_at_least: float | None = None,
) -> None:
    """Train the run of `spec` until it is finished or a signal stops it, and print the result.

    With several processes in `place`, all train together and end alike. A model that is less accurate on the
    held-out images than `accuracy_at_least`, in [0, 1], is published too, and then the chief raises
    QualityError. The champion is challenged if `publish.release` is set.
    """
    stop.grace_seconds, stop.advice = spec.train.grace_seconds, "A longer train.grace_seconds may help."
    require_tensorflow()  # before a run starts
    with Console(spec.train.log_interval_seconds) as console:
        console.banner()
        spec = chosen_spec(spec, cache_dir, console, fresh)
        # If only some processes restart after the run has finished, they must not wait for the others.
        finished = find_finished_run(spec, fresh) if place.count > 1 else None
        if finished is not None:
            _tell_finished(finished, console)
            judge(finished if place.is_chief else None, spec, cache_dir, console, stop, accuracy_at_least)
            return
        common = f"{__version__} {spec_digest(spec)} {spec.run_name}"
        peers = meet(place, common, spec.train.meet_seconds, console.say)
        peers.on_end(_end_soon)
        led = None
        try:
            if place.is_chief:
                led = _lead(spec, cache_dir, fresh, stop, console, peers)
            else:
                _follow(spec, cache_dir, stop, console, peers)
        except BaseException as error:
            exit_code = error.exit_code if isinstance(error, TrainerError) else TrainerError.exit_code
            peers.leave(exit_code, without_secrets(str(error)) or type(error).__name__)
            raise
        peers.leave()
        judge(led, spec, cache_dir, console, stop, accuracy_at_least)


def require_devices(wanted: str) -> None:
    """Raise AcceleratorError unless this host has the accelerator `wanted`, before a run starts."""
    import_tensorflow()
    from trainer.cluster import require_accelerator

    require_accelerator(wanted)


def _lead(
    spec: RunSpec, cache_dir: Path, fresh: bool, stop: Stop, console: Console, peers: Peers
) -> RunFolder:
    """Run the chief; return the run for the gates, which is an earlier one if nothing changed."""
    folder = open_run_folder(spec, datetime.now(timezone.utc), cache_dir, fresh, console)
    with ExitStack() as leave:
        leave.callback(folder.release)
        try:
            _led(folder, spec, cache_dir, stop, console, peers)
        except UnchangedError as error:
            folder.discard()
            console.line(str(error))
            return finished_folder(folder.output, error.run)
        leave.pop_all()  # keep the lease until the gates have run
    return folder


def _led(
    folder: RunFolder, spec: RunSpec, cache_dir: Path, stop: Stop, console: Console, peers: Peers
) -> None:
    try:
        if not folder.finished:
            console.on_fact("run", folder.at(""))
        peers.share(json.dumps({"name": folder.name, "finished": folder.finished}).encode())
        if not folder.finished:
            _do(spec, folder, cache_dir, console, stop, peers)
    except (StoppedError, UnchangedError):
        raise
    except Exception:
        folder.require_lease()  # a process that took over the run may be the cause
        raise
    if folder.finished:
        _tell_finished(folder, console)
    else:
        _tell_places(folder, console)


def _tell_finished(folder: RunFolder, console: Console) -> None:
    console.on_fact("run", folder.at(""))
    console.line("This run is finished; there is nothing to do.")
    latest = move_pointer(folder.output, folder.name)  # a crash may have prevented it
    if latest != folder.name:
        console.on_fact("latest", f"{latest}, which was published after this run")
    _tell_places(folder, console)


def _tell_places(folder: RunFolder, console: Console) -> None:
    console.line("")
    console.on_fact("report", folder.at("report.html"))
    console.on_fact("model", folder.at("model"))
    console.on_fact("try", f"{program()} predict {shlex.quote(folder.at(''))} PHOTO.jpg")


def _follow(spec: RunSpec, cache_dir: Path, stop: Stop, console: Console, peers: Peers) -> None:
    """Run a worker; the chief writes the run folder and prints the progress."""
    run = json.loads(peers.share(b""))
    place = peers.place
    console.on_fact("run", f"{run['name']}, as {place.name(place.index)}; the chief tells how it goes")
    if run["finished"]:
        console.line("This run is finished; there is nothing to do.")
        return
    folder = borrow_run_folder(spec.output, run["name"], cache_dir)
    try:
        _work(spec, folder, cache_dir, Quiet(console), stop, peers)
    except UnchangedError as error:
        console.line(str(error))
    finally:
        folder.release()


def _do(
    spec: RunSpec, folder: RunFolder, cache_dir: Path, console: Console, stop: Stop, peers: Peers
) -> None:
    before = folder.newest_checkpoint
    count_start(folder.path, before, spec.train.max_stalled_starts)
    folder.keep()
    try:
        if not before:
            find_start(folder.output, spec.train.start_from)  # fail before the data are downloaded
        _require_test_data(spec)
        verdict = _work(spec, folder, cache_dir, console, stop, peers)
        stop.end()  # from here on a signal must not make a finished run exit as a stopped one
    except StoppedError as error:
        if stop.by_hand and folder.newest_checkpoint == before:
            _forget_start(folder)  # unlike a preemption, Ctrl-C does not count
        again = f"{program()} train {shlex.quote(folder.at('spec.yaml'))}"
        raise StoppedError(f"{error} Continue with: {again}") from None
    except (UsageError, DataError, TemporaryError):
        # An error with a remedy does not count as a stalled start.
        others = _forget_start(folder)
        # Remove the folder of a failed first start; a run with a checkpoint can be resumed.
        if not (others or before or folder.newest_checkpoint or has_rejected(folder.path)):
            with suppress(TrainerError):
                folder.discard()
        raise
    if verdict is not None:
        console.verdict(verdict.headline, verdict.advice)


def _require_test_data(spec: RunSpec) -> None:
    """Raise UsageError if the local images of publish.test_data are missing, before training."""
    place = spec.publish.test_data
    if spec.publish.release and place is not None and os.path.isabs(place) and not os.path.exists(place):
        raise UsageError(
            f"The images that decide on a release aren't there; check publish.test_data. Received: {place}"
        )


def _work(
    spec: RunSpec, folder: RunFolder, cache_dir: Path, screen: Console | Quiet, stop: Stop, peers: Peers
) -> Verdict | None:
    # TensorFlow takes seconds to import, so the output that does not need it comes first.
    import_tensorflow()
    from trainer.run import run

    with memory_explained(_LESS_MEMORY), peers_explained(peers):
        return run(spec, folder, cache_dir, screen, stop, peers)


def _end_soon(error: TrainerError) -> None:
    """End this process 8 s after a peer has failed, even if the main thread is blocked."""

    def end() -> None:
        write_last_words(f"Error: {without_secrets(str(error))}\n")
        os._exit(error.exit_code)

    timer = threading.Timer(_END_SECONDS, end)
    timer.daemon = True
    timer.start()


def _forget_start(folder: RunFolder) -> int:
    """Remove this start from the stalled count; return the number of other starts, 1 if unknown."""
    with suppress(TrainerError):
        folder.require_lease()  # otherwise the last row belongs to another process
        others = forget_start(folder.path)
        folder.keep()
        return others
    return 1
