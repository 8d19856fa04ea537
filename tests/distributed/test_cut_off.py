"""Network partition between two hosts, as two network namespaces whose link goes down."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.many_hosts import SETTINGS

from trainer.runs.publish import verify
from trainer.storage import open_store

STEP = re.compile(r'"event": "progress".* "step": (\d+)')
RESUMED = re.compile(r"Resuming after step (\d+)")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Hosts:
    """Two network namespaces connected by a veth pair."""

    def __init__(self) -> None:
        number = os.getpid() % 10_000
        self.names = [f"trainer-{number}-{index}" for index in (0, 1)]
        self.cables = [f"tr{number}{end}" for end in "ab"]

    def make(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        one, other = self.cables
        ip(
            "link",
            "add",
            one,
            "netns",
            self.names[0],
            "type",
            "veth",
            "peer",
            "name",
            other,
            "netns",
            self.names[1],
        )
        for index, (name, cable) in enumerate(zip(self.names, self.cables, strict=True)):
            ip("-n", name, "addr", "add", f"10.77.0.{index + 1}/24", "dev", cable)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", cable, "up")

    def pull(self) -> None:
        """Take the link down: packets are dropped without notification."""
        ip("-n", self.names[1], "link", "set", self.cables[1], "down")

    def plug(self) -> None:
        ip("-n", self.names[1], "link", "set", self.cables[1], "up")

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def start(self, index: int, folder: Path, *flags: str) -> tuple[subprocess.Popen[bytes], Path]:
        addresses = [f"10.77.0.{each}:2222" for each in (1, 2)]
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {
            **os.environ,
            "TF_CONFIG": json.dumps(task),
            "XDG_CACHE_HOME": str(folder / f"cache-{index}"),
        }
        log = folder / f"{time.monotonic_ns()}-{index}.log"
        with log.open("w") as file:
            command = ["ip", "netns", "exec", self.names[index], sys.executable, "-m", "trainer.task", *flags]
            return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT), log


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the program ip, of Debian's iproute2")
    hosts = Hosts()
    try:
        hosts.make()
    except subprocess.CalledProcessError as error:
        hosts.remove()
        pytest.skip(f"this kernel makes no network namespaces: {error.stderr.decode()[:200]}")
    yield hosts
    hosts.remove()


@pytest.mark.engine
def test_network_partition_ends_both_hosts_and_the_run_resumes(
    hosts: Hosts, photos: Path, tmp_path: Path
) -> None:
    place = ["--data", str(photos), "--output", str(tmp_path / "runs"), "--run-name", "cut"]
    flags = [*place, *(word for setting in [*SETTINGS, "train.epochs=60"] for word in ("--set", setting))]
    started = [hosts.start(index, tmp_path, *flags) for index in (0, 1)]
    chief, log = started[0]
    while not any(int(step) >= 20 for step in STEP.findall(log.read_text())):
        assert chief.poll() is None, log.read_text()
        time.sleep(0.02)
    hosts.pull()
    began = time.monotonic()
    codes = [process.wait(timeout=90) for process, _ in started]
    print(f"both had ended {time.monotonic() - began:.1f} s after the cable was pulled")
    said = "\n".join(each.read_text() for _, each in started)
    assert codes == [75, 75], said
    assert "Traceback" not in said
    assert "worker 1 (10.77.0.2:2222)" in log.read_text()
    hosts.plug()
    started = [hosts.start(index, tmp_path, *flags) for index in (0, 1)]
    codes = [process.wait(timeout=240) for process, _ in started]
    text = started[0][1].read_text()
    assert codes == [0, 0], text
    resumed = RESUMED.search(text)
    assert resumed is not None
    assert int(resumed[1]) >= 16  # a checkpoint every four steps
    assert verify(open_store(str(tmp_path / "runs" / "cut"))) == []
