"""End-to-end runs of two processes on loopback: rendezvous, stopping, failures and completion."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.free_ports import addresses
from helpers.many_hosts import SETTINGS
from helpers.small_training import dark_and_light

from trainer.evaluate.prediction_files import read_predictions
from trainer.model.airbench import sum_patches, whitening_weights
from trainer.runs.publish import verify
from trainer.storage import open_store
from trainer.training.checkpoint import list_checkpoints

pytestmark = pytest.mark.engine

SECRET = "t0ken-of-the-gr0up"

STOPPED = re.compile(r"Stopped on request after step (\d+) of \d+; the checkpoint is safe")
STEP = re.compile(r'"event": "progress".* "step": (\d+)')


class Worker:
    """One process of a run, with its output in a file, so that no pipe has to be drained."""

    def __init__(self, index: int, hosts: Sequence[str], log: Path, *flags: str) -> None:
        self.log = log
        task = {"cluster": {"worker": list(hosts)}, "task": {"type": "worker", "index": index}}
        cache = str(log.parent / f"cache-{index}")
        environment = {
            **os.environ, "TF_CONFIG": json.dumps(task), "XDG_CACHE_HOME": cache, "NO_COLOR": "1",
            "TRAINER_GROUP_SECRET": SECRET,
        }  # fmt: skip
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "trainer.task", *flags],
                env=environment, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def text(self) -> str:
        return self.log.read_text()

    def end(self) -> int:
        return self.process.wait(timeout=240)


class Pair:
    """Output folder and input images of the runs of two workers."""

    def __init__(self, folder: Path, photos: Path) -> None:
        self.folder, self.photos, self.starts = folder, photos, 0

    def start(self, name: str, index: int, hosts: Sequence[str], *settings: str) -> Worker:
        self.starts += 1
        given = [each for setting in [*SETTINGS, *settings] for each in ("--set", setting)]
        place = ["--data", str(self.photos), "--output", str(self.folder / "runs"), "--run-name", name]
        return Worker(index, hosts, self.folder / f"{self.starts}-{name}-{index}.log", *place, *given)

    def both(self, name: str) -> list[Worker]:
        hosts = addresses(2)
        return [self.start(name, index, hosts) for index in (0, 1)]

    def checkpoints(self, name: str) -> list[Path]:
        return list_checkpoints(self.folder / "runs" / name / "checkpoints")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Pair:
    return Pair(tmp_path_factory.mktemp("pair"), photos)


@pytest.fixture(scope="module")
def calm(pair: Pair) -> Path:
    """Return the folder of an uninterrupted run whose second process started late."""
    hosts = addresses(2)
    chief = pair.start("calm", 0, hosts)
    time.sleep(4.0)
    assert chief.process.poll() is None
    assert "calm" not in chief.text()  # the chief waits for the worker
    late = pair.start("calm", 1, hosts)
    assert [chief.end(), late.end()] == [0, 0], chief.text() + late.text()
    return pair.folder / "runs" / "calm"


def wait_for_step(worker: Worker, step: int) -> None:
    """Wait until the chief reports a step after `step`."""
    until = time.monotonic() + 120
    while max((int(found[1]) for found in STEP.finditer(worker.text())), default=0) <= step:
        assert worker.process.poll() is None, worker.text()
        assert time.monotonic() < until, worker.text()
        time.sleep(0.01)


def step_of(path: Path) -> int:
    return int(path.stem.split("-")[1])


def test_port_in_use_ends_both_processes_with_its_address(pair: Pair) -> None:
    hosts = addresses(2)
    with socket.create_server(("", int(hosts[1].rpartition(":")[2]))):
        workers = [pair.start("held", index, hosts) for index in (0, 1)]
        assert [worker.end() for worker in workers] == [75, 75]
    for worker in workers:
        assert "TensorFlow cannot open its port for the other processes of the run." in worker.text()
        assert f"Received: {hosts[1]}" in worker.text()


def test_stopped_and_killed_run_resumes_to_the_result_of_an_undisturbed_one(pair: Pair, calm: Path) -> None:
    workers = pair.both("disturbed")
    wait_for_step(workers[0], 3)
    workers[1].process.send_signal(signal.SIGTERM)
    assert [each.end() for each in workers] == [143, 143], workers[0].text() + workers[1].text()
    assert not [each for each in workers if "StartAbort" in each.text()]
    stopped = {int(found[1]) for each in workers for found in STOPPED.finditer(each.text())}
    assert len(stopped) == 1
    (step,) = stopped
    assert [step_of(path) for path in pair.checkpoints("disturbed")].count(step) == 1
    assert step_of(pair.checkpoints("disturbed")[-1]) == step

    workers = pair.both("disturbed")
    wait_for_step(workers[0], step + 5)
    workers[1].process.kill()
    began = time.monotonic()
    assert workers[0].end() == 75, workers[0].text()
    assert workers[1].end() == -signal.SIGKILL
    print(f"the other noticed within {time.monotonic() - began:.1f} s")
    assert "worker 1 (" in workers[0].text()
    assert "Lost connection to worker 1 (" in workers[0].text()
    assert "Traceback" not in workers[0].text()
    assert f"Resuming after step {step} of" in workers[0].text()
    last = step_of(pair.checkpoints("disturbed")[-1])
    assert last > step

    workers = pair.both("disturbed")
    assert [each.end() for each in workers] == [0, 0], workers[0].text() + workers[1].text()
    assert f"Resuming after step {last} of" in workers[0].text()
    run = pair.folder / "runs" / "disturbed"
    assert verify(open_store(str(run))) == []
    for name in ("history.jsonl", "metrics.json", "predictions.csv"):
        assert (run / name).read_bytes() == (calm / name).read_bytes(), name
    newest, expected = (list_checkpoints(each / "checkpoints")[-1] for each in (run, calm))
    with np.load(newest) as found, np.load(expected) as wanted:
        names = [name for name in wanted.files if name != "record.json"]
        assert [name for name in names if not np.array_equal(found[name], wanted[name])] == []


@pytest.mark.parametrize("started", [(0, 1), (0,), (1,)], ids=["both", "the chief", "a worker"])
def test_restarted_processes_report_a_finished_run(pair: Pair, calm: Path, started: tuple[int, ...]) -> None:
    before = (calm / "MANIFEST.json").read_bytes()
    hosts = addresses(2)
    workers = [pair.start("calm", index, hosts) for index in started]
    began = time.monotonic()
    assert [each.end() for each in workers] == [0] * len(started)
    for each in workers:
        assert "This run is finished; there is nothing to do." in each.text()
    assert time.monotonic() - began < 100  # less than the 120 s of train.meet_seconds
    assert (calm / "MANIFEST.json").read_bytes() == before


def test_no_file_and_no_log_of_a_run_contains_the_secret_of_its_group(pair: Pair, calm: Path) -> None:
    files = [path for path in pair.folder.rglob("*") if path.is_file()]
    assert {"environment.json", "report.html"} <= {path.name for path in files}
    assert len([path for path in files if path.suffix == ".log"]) >= 2
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_finished_run_of_another_spec_is_refused_without_a_rendezvous(pair: Pair, calm: Path) -> None:
    alone = pair.start(calm.name, 1, addresses(2), "train.epochs=3")
    assert alone.end() == 2
    assert "train.epochs" in alone.text()


def test_worker_with_another_spec_ends_with_2_and_the_chief_names_the_setting(pair: Pair) -> None:
    hosts = addresses(2)
    workers = [
        pair.start("differing", 0, hosts, "train.meet_seconds=30"),
        pair.start("differing", 1, hosts, "train.epochs=29"),
    ]
    assert [worker.end() for worker in workers] == [75, 2], workers[0].text() + workers[1].text()
    assert "it differs in train.epochs. Start all processes with the same command" in workers[1].text()
    assert "worker 1 differs in train.epochs (1x)." in workers[0].text()


def test_all_processes_start_with_the_weights_of_the_chief(pair: Pair) -> None:
    hosts = addresses(1)
    plain = ["model={family: plain, filters: [8]}", "train.epochs=2"]
    first = pair.start("first", 0, hosts, *plain)
    assert first.end() == 0, first.text()
    # The learning rate changes no weight; each process predicts its share of the images.
    still = [*plain, "optimizer.learning_rate=1e-12", f"train.start_from={pair.folder}/runs/first"]
    hosts = addresses(2)
    workers = [pair.start("warm", index, hosts, *still) for index in (0, 1)]
    assert [each.end() for each in workers] == [0, 0], workers[0].text() + workers[1].text()
    runs = [pair.folder / "runs" / name for name in ("first", "warm")]
    before, after = (read_predictions(run / "predictions.csv") for run in runs)
    for one, other in zip(before, after, strict=True):
        assert np.abs(one.probabilities - other.probabilities).max() < 1e-5


def test_missing_worker_is_named(pair: Pair) -> None:
    hosts = addresses(3)
    workers = [pair.start("never", index, hosts, "train.meet_seconds=4") for index in (0, 1)]
    assert [each.end() for each in workers] == [75, 75]
    for each in workers:
        assert f"missing: worker 2 ({hosts[2]})" in each.text()
    assert not (pair.folder / "runs" / "never").exists()


def test_profile_on_the_chief_alone_keeps_the_steps_in_sync(pair: Pair) -> None:
    hosts = addresses(2)
    # A batch size with equal shares: where shares differ, blocks are short without a profile too.
    settings = [
        "train.epochs=3", "train.steps_per_call=4", "train.checkpoint.every_steps=100",
        "train.global_batch_size=4",
    ]  # fmt: skip
    workers = [
        pair.start("profiled", 0, hosts, *settings, "train.profile=3-6"),
        pair.start("profiled", 1, hosts, *settings),
    ]
    assert [each.end() for each in workers] == [0, 0], workers[0].text() + workers[1].text()
    run = pair.folder / "runs" / "profiled"
    (found,) = run.glob("profile/plugins/profile/*/*.xplane.pb")
    assert verify(open_store(str(run))) == []
    manifest = json.loads((run / "MANIFEST.json").read_text())
    assert found.relative_to(run).as_posix() in json.dumps(manifest)


def test_each_process_caches_its_share_and_all_have_the_same_whitening(tmp_path: Path) -> None:
    hosts = addresses(2)
    processes = []
    for index in range(2):
        task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "helpers.resident_hosts", str(tmp_path / str(index))],
                cwd=Path(__file__).parents[1],
                env={**os.environ, "TF_CONFIG": json.dumps(task)},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    found = []
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        found += json.loads(out.splitlines()[-1])
    assert [len(each["history"]) for each in found] == [2] * 4
    assert all(each == found[0] for each in found)
    # Each process read half of the images; both have the whitening kernel of all images.
    whole, _ = whitening_weights(sum_patches(dark_and_light().train.pixels.gather(np.arange(44))))
    np.testing.assert_array_equal(np.array(found[0]["kernel"], np.float32), whole)
