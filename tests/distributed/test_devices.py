"""Devices of a host, and the errors when they are missing."""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import tensorflow as tf
from helpers.free_ports import addresses
from helpers.small_data import put
from helpers.trainer_process import command, error_line

from trainer.cli.bootstrap import import_tensorflow, translate_memory_errors
from trainer.distributed import ProcessGroup, ProcessInfo, join_process_group
from trainer.distributed.devices import (
    Gpu,
    Host,
    agree_on_devices,
    choose_precision,
    find_cluster,
    find_driver_problem,
    find_kernel_problem,
    query_gpus,
    require_accelerator,
)
from trainer.errors import AcceleratorError, OutOfMemoryError, UsageError


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Executable found in PATH before the driver's nvidia-smi."""
    program = put(tmp_path / "bin" / "nvidia-smi", b"")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return program


def test_memory_and_driver_version_come_from_nvidia_smi(driver: Path) -> None:
    driver.write_text(
        "#!/bin/sh\n"
        '[ "$2" = --format=csv,noheader,nounits ] && printf "23034, 550.54.15\\n81559, 550.54.15\\n"'
    )
    assert query_gpus() == [Gpu(23034, "550.54.15"), Gpu(81559, "550.54.15")]


@pytest.mark.parametrize(
    "command", ["exit 9", "echo 'No devices were found'", "echo '[N/A], 550'", "exec sleep 0"]
)
def test_failing_nvidia_smi_means_no_gpus(driver: Path, command: str) -> None:
    driver.write_text(f"#!/bin/sh\n{command}\n")
    assert query_gpus() == []


def test_missing_nvidia_smi_means_no_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert query_gpus() == []


@pytest.mark.parametrize(("version", "is_old"), [("470.256.02", True), ("525.60.13", False), ("N/A", False)])
def test_driver_too_old_for_cuda_12_is_named(version: str, is_old: bool) -> None:
    problem = find_driver_problem([Gpu(23034, "550.54.15"), Gpu(23034, version)])
    assert (problem is not None and version in problem and "525" in problem) == is_old


@pytest.mark.parametrize(
    ("capability", "built", "is_named"),
    [
        ((9, 0), ["sm_80", "sm_89", "compute_90"], False),
        ((10, 0), ["sm_80", "sm_89", "compute_90"], False),
        ((12, 0), ["sm_80", "sm_89", "compute_90"], True),
        ((12, 1), ["sm_90", "sm_120", "compute_120"], False),
        ((12, 0), [], True),
    ],
)
def test_gpu_without_kernels_in_tensorflow_is_named(
    capability: tuple[int, int], built: list[str], is_named: bool
) -> None:
    problem = find_kernel_problem(capability, built)
    assert (problem is not None and "capability 12.0. Use another GPU" in problem) == is_named


def test_missing_accelerator_is_an_error() -> None:
    for wanted in ("gpu", "gpu:4"):
        with pytest.raises(AcceleratorError, match=f"{wanted[4:] or 1} GPU"):
            require_accelerator(wanted)
    with pytest.raises(AcceleratorError, match="TensorFlow finds no usable TPU"):
        require_accelerator("tpu")
    with pytest.raises(UsageError, match="gpu:COUNT"):
        require_accelerator("cpu")
    with pytest.raises(UsageError, match="Devices must be"):
        find_cluster(devices="tpu:8")


def test_auto_precision_follows_the_devices() -> None:
    cluster = find_cluster(devices="cpu")
    assert choose_precision("auto", cluster) == ("bfloat16" if cluster.has_bfloat16 else "float32")
    assert choose_precision("float32", cluster) == "float32"
    assert "core" in cluster.description
    assert cluster.strategy.num_replicas_in_sync == 1


def test_too_many_logical_devices_are_refused() -> None:
    with pytest.raises(UsageError, match="at most 64 logical devices"):
        find_cluster(devices="cpu:65")


def test_out_of_memory_error_names_the_allocation() -> None:
    said = "Graph execution error:\n\nDetected at node conv\n\nOOM when allocating tensor with shape[9]"
    with (
        pytest.raises(OutOfMemoryError, match=r"Use less\. Received: OOM when allocating"),
        translate_memory_errors("Use less."),
    ):
        raise tf.errors.ResourceExhaustedError(None, None, said)


def test_limited_address_space_is_reported_at_the_start(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = shlex.join(command("train", "--recipe", "demo", "--output", tmp_path / "runs"))
    done = subprocess.run(
        ["bash", "-c", f"ulimit -v 2000000 && exec {words}"], capture_output=True, text=True, check=False
    )
    line = error_line(done, 137)
    assert "less than the 2 GiB that TensorFlow needs. Remove the limit with `ulimit -v unlimited`" in line
    assert line.endswith("Received: ulimit -v 2000000")
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 45, before[1]))
        import_tensorflow()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert "ends with 134 or 139 and without a message, which means out of memory" in capfd.readouterr().err


def test_hosts_with_different_devices_are_named() -> None:
    hosts = tuple(addresses(2))
    errors: dict[int, str] = {}

    def work(index: int, devices: int) -> None:
        peers = join_process_group(ProcessInfo(hosts, index, hosts[0]), {}, 30.0, lambda text: None)
        # The port of the first address is in use by the rendezvous.
        peers.process = replace(peers.process, addresses=("localhost:0", "localhost:0"))
        try:
            agree_on_devices(Host("GPU", devices, devices > 1, 24_000 * devices), peers)
        except AcceleratorError as error:
            errors[index] = str(error)
        peers.shutdown()

    both = [threading.Thread(target=work, args=each) for each in ((0, 2), (1, 1))]
    for each in both:
        each.start()
    for each in both:
        each.join(60)
    assert sorted(errors) == [0, 1]
    assert "worker 1" in errors[0]
    assert "Received: 1 GPU, and 2 GPU on the chief" in errors[0]


def test_single_process_keeps_its_devices() -> None:
    local = Host("CPU", 1, True, 0)
    assert agree_on_devices(local, ProcessGroup(ProcessInfo())) is local
