"""The post-training gates of a published run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.release_inputs import measured
from helpers.watched_store import NOW, Watched

from trainer.cli.console import Console
from trainer.cli.gates import run_gates
from trainer.errors import DataError, QualityError, StoppedError, UsageError
from trainer.release.audit_log import read_records
from trainer.runs import RunFolder, finished_folder, open_run_folder
from trainer.runs.champion import CHAMPION, read_pointer
from trainer.runs.publish import MANIFEST, MARKER, is_finished
from trainer.shutdown import GracefulShutdown
from trainer.spec import RunSpec, load_spec
from trainer.storage.lease import take_lease


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    publish = {"release": True, "keep_runs": 1}
    return load_spec(
        recipe="demo", overrides={"output": str(tmp_path / "runs"), "run_name": "two", "publish": publish}
    )


@pytest.fixture
def folder(spec: RunSpec, tmp_path: Path) -> Iterator[RunFolder]:
    """Yield the folder of a run that was just published, after another run."""
    folder = open_run_folder(spec, NOW, tmp_path / "cache")
    for name in ("one", "two"):
        measured(folder.output, tmp_path / "local", name, 18)
    yield folder
    folder.release()


def judged(
    folder: RunFolder, spec: RunSpec, at_least: float | None = None, stop: GracefulShutdown | None = None
) -> None:
    with Console(1.0) as console:
        run_gates(folder, spec, folder.path.parent / "cache", console, stop or GracefulShutdown(), at_least)


def test_run_below_the_required_accuracy_does_not_challenge_the_champion(
    folder: RunFolder, spec: RunSpec, tmp_path: Path
) -> None:
    for name in (MANIFEST, MARKER):
        folder.output.remove(f"two/{name}")
    measured(folder.output, tmp_path / "local", "two", 18, '{"validation/accuracy": 0.7}')
    with pytest.raises(QualityError, match=r"validation accuracy 0\.7000, at least 0\.9"):
        judged(folder, spec, 0.9)
    assert read_pointer(folder.output).name == ""
    assert not is_finished(folder.output.below("one"))  # old runs are retired nevertheless
    judged(folder, spec, 0.7)
    assert read_pointer(folder.output).name == "two"


def test_required_accuracy_excludes_copies_of_training_images(
    folder: RunFolder, spec: RunSpec, tmp_path: Path
) -> None:
    for copies, message in (
        (9, r"accuracy 0\.3333 without 9 exact copies"),
        (18, "all held-out images are"),
    ):
        for name in (MANIFEST, MARKER):
            folder.output.remove(f"two/{name}")
        measured(folder.output, tmp_path / "local", "two", 12, '{"validation/accuracy": 0.6667}', copies)
        with pytest.raises(QualityError if copies == 9 else DataError, match=message):
            judged(folder, spec, 0.6)
    assert read_pointer(folder.output).name == ""


@pytest.mark.parametrize(
    "metrics", [b"{", b"{}", b'{"validation/accuracy": NaN}', b'{"test/accuracy": null}']
)
def test_required_accuracy_fails_if_the_accuracy_is_unknown(
    metrics: bytes, folder: RunFolder, spec: RunSpec
) -> None:
    folder.output.write("two/metrics.json", metrics)
    with pytest.raises(DataError, match="The accuracy of the run is unknown"):
        judged(folder, spec, 0.1)
    assert read_pointer(folder.output).name == ""


def test_old_runs_are_retired_even_if_the_challenge_fails(folder: RunFolder, spec: RunSpec) -> None:
    folder.output.write(CHAMPION, b"gone\n")
    with pytest.raises(UsageError, match="names a run that does not exist"):
        judged(folder, spec)
    assert not is_finished(folder.output.below("one"))


def test_earlier_decision_is_reported_while_another_process_holds_the_lease(
    folder: RunFolder, spec: RunSpec
) -> None:
    judged(folder, spec)
    lease = take_lease(folder.output, ".two.lease", lambda words: None)
    try:
        judged(replace(folder, lease=None), spec)
    finally:
        lease.release()
    assert len(read_records(folder.output)) == 1


def test_earlier_run_with_a_held_lease_is_not_challenged_again(folder: RunFolder, spec: RunSpec) -> None:
    lease = take_lease(folder.output, ".one.lease", lambda words: None, expiry_seconds=1.0)
    try:
        judged(finished_folder(folder.output, "one"), spec)
    finally:
        lease.release()
    assert read_pointer(folder.output).name == ""


def test_signal_stops_the_gates(folder: RunFolder, spec: RunSpec) -> None:
    """The gates may have to download two models and their images."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    stop = GracefulShutdown(grace_seconds=100_000.0)
    try:
        stop.install()
        stop.ignore_signals()  # as at the end of training
        os.kill(os.getpid(), signal.SIGTERM)

        def be_stopped(do: object) -> str | None:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("It goes on.")

        watched = replace(folder, output=Watched(Path(folder.output.uri), be_stopped))
        with pytest.raises(StoppedError, match=r"Repeat the gates with: .*trainer train .*two/spec\.yaml"):
            judged(watched, spec, stop=stop)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert is_finished(folder.output.below("one"))  # it stops at once and retires nothing
    judged(folder, spec)
    assert read_pointer(folder.output).name == "two"
