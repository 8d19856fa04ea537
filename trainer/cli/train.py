"""`trainer train`: a run with a screen and signals around it.

In: a resolved spec. Out: the lines that a person or a log reads, ending with where the
report and the model are.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from trainer.cli.console import Console
from trainer.cli.environment import import_tensorflow, memory_explained, require_tensorflow
from trainer.exits import DataError, StoppedError, TemporaryError, TrainerError, UsageError
from trainer.publish import move_pointer
from trainer.run_folder import RunFolder, count_start, forget_start, open_run_folder
from trainer.spec import RunSpec
from trainer.stop import Stop

_LESS_MEMORY = (
    "lower train.global_batch_size, data.image_size or the size of the model, with another --run-name"
)


def train_command(spec: RunSpec, cache_dir: Path, fresh: bool, stop: Stop) -> None:
    """Do the run of `spec`, until it is done or `stop` hears a signal, and say how it went."""
    stop.grace_seconds, stop.advice = spec.train.grace_seconds, " A longer train.grace_seconds may help."
    require_tensorflow()  # before a run is begun
    with Console(spec.train.log_interval_seconds) as console:
        console.banner()
        folder = open_run_folder(spec, datetime.now(timezone.utc), cache_dir, fresh, console)
        try:
            console.on_fact("run", folder.at(""))
            if folder.finished:
                console.line("This run is finished; there is nothing to do.")
                move_pointer(folder.output, folder.name)  # a crash may have come before it
            else:
                _do(spec, folder, cache_dir, console, stop)
        finally:
            folder.release()
        console.line("")
        console.on_fact("report", folder.at("report.html"))
        console.on_fact("model", folder.at("model"))
        console.on_fact("try", f"{_program()} predict {shlex.quote(folder.at(''))} PHOTO.jpg")


def _do(spec: RunSpec, folder: RunFolder, cache_dir: Path, console: Console, stop: Stop) -> None:
    before = folder.newest_checkpoint
    count_start(folder.path, before, spec.train.max_stalled_starts)
    folder.keep()
    try:
        # TensorFlow takes seconds to load: what can be said without it comes first.
        import_tensorflow()
        from trainer.run import run

        with memory_explained(_LESS_MEMORY):
            verdict = run(spec, folder, cache_dir, console, stop)
        stop.end()  # a signal from here on would make a run that is done look like one that was stopped
    except StoppedError as error:
        if stop.by_hand and folder.newest_checkpoint == before:
            _forget_start(folder)  # a machine that takes it away again and again is what is counted
        again = f"{_program()} train {shlex.quote(folder.at('spec.yaml'))}"
        raise StoppedError(f"{error} Continue with: {again}") from None
    except (UsageError, DataError, TemporaryError):
        # It ended with a message that says what to do: that isn't a start which got stuck.
        _forget_start(folder)
        raise
    console.verdict(verdict.headline, verdict.advice)


def _forget_start(folder: RunFolder) -> None:
    with suppress(TrainerError):
        folder.require_lease()  # else the last row is another process's
        forget_start(folder.path)
        folder.keep()


def _program() -> str:
    """Return what to type for this program: its name if the shell finds it, else its path."""
    program = Path(sys.argv[0])
    found = shutil.which("trainer") is not None or program.name != "trainer"
    return "trainer" if found else shlex.quote(str(program))
