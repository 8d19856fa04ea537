"""`trainer train`: a run with a screen and signals around it.

In: a resolved spec. Out: the lines that a person or a log reads, ending with where the
report and the model are.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from datetime import datetime, timezone
from pathlib import Path

from trainer.cli.console import Console
from trainer.exits import OutOfMemoryError, StoppedError
from trainer.publish import is_pointer_older, publish
from trainer.run_folder import RunFolder, open_run_folder
from trainer.spec import RunSpec
from trainer.stop import Stop


def train_command(spec: RunSpec, cache_dir: Path) -> None:
    """Do the run of `spec` and say how it went."""
    stop = Stop()
    stop.listen()
    with Console(spec.train.log_interval_seconds) as console:
        console.banner()
        folder = open_run_folder(spec, datetime.now(timezone.utc))
        console.on_fact("run", str(folder.path))
        if folder.finished:
            console.line("This run is finished; there is nothing to do.")
            if is_pointer_older(folder.path):
                publish(folder.path)  # a crash came between its marker and the pointer
        else:
            _do(spec, folder, cache_dir, console, stop)
        console.line("")
        console.on_fact("report", str(folder.report))
        console.on_fact("model", str(folder.model))
        console.on_fact("try", f"{_program()} predict {shlex.quote(str(folder.path))} PHOTO.jpg")


def _do(spec: RunSpec, folder: RunFolder, cache_dir: Path, console: Console, stop: Stop) -> None:
    # TensorFlow takes seconds to load: what can be said without it comes first.
    import tensorflow as tf

    from trainer.run import run

    try:
        verdict = run(spec, folder, cache_dir, console, stop)
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        detail = (str(error) or "no more memory").splitlines()[0][:200]
        raise OutOfMemoryError(
            "The memory does not suffice; lower train.global_batch_size, data.image_size or the size of the "
            f"model, with another --run-name. Received: {detail}"
        ) from None
    except StoppedError as error:
        again = f"{_program()} train {shlex.quote(str(folder.path / 'spec.yaml'))}"
        raise StoppedError(f"{error} Continue with: {again}") from None
    console.verdict(verdict.headline, verdict.advice)


def _program() -> str:
    """Return what to type for this program: its name if the shell finds it, else its path."""
    program = Path(sys.argv[0])
    found = shutil.which("trainer") is not None or program.name != "trainer"
    return "trainer" if found else shlex.quote(str(program))
