"""`trainer train`: a run with a screen and signals around it.

In: a resolved spec. Out: the lines that a person or a log reads, ending with where the
report and the model are.
"""

from __future__ import annotations

from pathlib import Path

from trainer.cli.console import Console
from trainer.exits import StoppedError
from trainer.spec import RunSpec
from trainer.stop import Stop


def train_command(spec: RunSpec, cache_dir: Path) -> None:
    """Do the run of `spec` and say how it went."""
    console = Console(spec.train.log_interval_seconds)
    stop = Stop()
    stop.listen()
    with console:
        console.banner()
        # TensorFlow takes seconds to load: the banner comes first.
        from trainer.run import run

        try:
            outcome = run(spec, cache_dir, console, stop)
        except StoppedError as error:
            raise StoppedError(f"{error} {console.how_to_continue()}".rstrip()) from None
    folder = outcome.folder
    if outcome.verdict is None:
        console.line(f"{folder.path} is finished; there is nothing to do.")
    else:
        console.verdict(outcome.verdict.headline, outcome.verdict.advice)
    console.line("")
    console.on_fact("report", str(folder.report))
    console.on_fact("model", str(folder.model))
    console.on_fact("try", f"trainer predict {folder.path} PHOTO.jpg")
