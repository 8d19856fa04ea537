"""Private Docker engine, and a base image that needs no registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from docker import APIClient, DockerClient
from docker.models.containers import Container

BASE = "base:of-tests"
USER = 65532
"""User ID in the image."""
_CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"


@contextmanager
def docker_engine(folder: Path) -> Iterator[DockerClient]:
    """Start an engine with all its data below `folder` and yield a client; skip if that is impossible."""
    if os.geteuid() != 0 or not shutil.which("dockerd"):
        pytest.skip("a Docker engine of one's own needs root and the program dockerd, of Debian's docker.io")
    address = f"unix://{folder}/socket"
    options = {"data-root": "data", "exec-root": "exec", "pidfile": "pid"}
    folders = [f"--{name}={folder / subfolder}" for name, subfolder in options.items()]
    command = ["dockerd", "--host", address, *folders]
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        _wait_for(address, process, log)
        client = DockerClient(base_url=address, timeout=300)
        yield client
        client.close()
    finally:
        process.terminate()
        process.wait()
        _clear(folder)


def make_base(client: DockerClient, folder: Path) -> None:
    """Import a Debian with Python as the image `BASE`; skip if none can be built."""
    if not shutil.which("debootstrap"):
        pytest.skip("a base image without a registry needs the program debootstrap")
    root = folder / "debian"
    packages = "--include=python3,python3-venv,ca-certificates"
    command = ["debootstrap", "--variant=minbase", packages, "bookworm", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no Debian could be had: {done.stdout[-300:]}")
    # Remove what the slim images lack. Copy this machine's CA bundle, because its package index may use a
    # private CA.
    for name in ("var/lib/apt/lists", "var/cache/apt", "usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(root / name)
        (root / name).mkdir()
    shutil.copy(f"/{_CERTIFICATES}", root / _CERTIFICATES)
    index = os.environ.get("PIP_INDEX_URL")
    lines = [f"cert = /{_CERTIFICATES}", *([f"index-url = {index}"] if index else [])]
    (root / "etc" / "pip.conf").write_text("[global]\n" + "".join(f"{line}\n" for line in lines))
    archive = folder / "base.tar"
    subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True)
    client.api.import_image_from_file(str(archive), *BASE.split(":"))
    archive.unlink()
    shutil.rmtree(root)


def _clear(folder: Path) -> None:
    """Remove the data of the engine, and unmount what would keep the folder busy."""
    for line in Path("/proc/mounts").read_text().splitlines():
        mount = line.split()[1]
        if mount.startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", mount], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        # A client without a socket leaves its own connection half open.
        if Path(address.removeprefix("unix://")).exists():
            with suppress(Exception), closing(APIClient(base_url=address)) as client:
                client.ping()
                return
        time.sleep(0.2)
    pytest.skip(f"the engine does not start here: {log.read_text()[-300:]}")


def engine_address(engine: DockerClient) -> str:
    """Return the value of DOCKER_HOST for this engine."""
    return f"unix://{Path(engine.info()['DockerRootDir']).parent}/socket"


def start(
    engine: DockerClient, output: Path, *words: str, mounted: Mapping[str, str] | None = None, **options: Any
) -> Container:
    """Start the image like a restricted pod: read-only root, no capabilities, limited memory.

    `mounted` maps files of this machine to their read-only paths in the container.
    """
    arguments: dict[str, Any] = {"mem_limit": "3g"} | options
    volumes = [f"{output}:/out", *(f"{source}:{target}:ro" for source, target in (mounted or {}).items())]
    return engine.containers.run(
        "trainer:cpu", list(words), detach=True, read_only=True, tmpfs={"/tmp": ""}, cap_drop=["ALL"],
        security_opt=["no-new-privileges"], volumes=volumes, **arguments,
    )  # fmt: skip


def end(container: Container) -> tuple[int, str]:
    """Wait until the container exits, remove it, and return its exit code and log."""
    code = int(container.wait(timeout=240)["StatusCode"])
    output = container.logs().decode()
    container.remove()
    return code, output


def wait_for_line(container: Container, text: str) -> None:
    """Wait until the container has logged `text`."""
    until = time.monotonic() + 120
    while text not in (output := container.logs().decode()):
        assert time.monotonic() < until, output
        time.sleep(0.2)  # following the log would leave a socket open
