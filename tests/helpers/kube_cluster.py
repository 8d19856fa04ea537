"""The real kubectl and the command line against a cluster of `kube_server`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from click.testing import CliRunner

from helpers.kube_server import Kube, kube_server
from helpers.trainer_process import error_line
from trainer.cli.app import cli
from trainer.errors import TrainerError


def minor_version() -> int:
    """Return the minor version of kubectl, such as 32 for 1.32; 0 if it is not installed."""
    if shutil.which("kubectl") is None:
        return 0
    process = subprocess.run(
        ["kubectl", "version", "--client", "-o", "json"], capture_output=True, check=True
    )
    return int(json.loads(process.stdout)["clientVersion"]["minor"].rstrip("+"))


# Older versions need a larger OpenAPI document than this server has.
needs_kubectl = pytest.mark.skipif(minor_version() < 29, reason="there is no kubectl of 1.29 or later")


class Cluster:
    """Server, and the command line configured for it."""

    def __init__(self, kube: Kube, config: Path) -> None:
        self.kube = kube
        # No request leaves this machine, whatever credentials it has.
        self.environment = {
            **os.environ,
            "KUBECONFIG": str(config),
            "HOME": str(config.parent),
            "NO_GCE_CHECK": "true",
            "DOCKER_HOST": f"unix://{config.parent}/nowhere",
        }
        self.environment.pop("GOOGLE_APPLICATION_CREDENTIALS", None)

    def trainer(self, *arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
        """Run the command line in a separate process."""
        return subprocess.run(
            [sys.executable, "-m", "trainer.cli", *arguments],
            env=self.environment, input=answer, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def quick(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line in this process, for commands that open no Google or Docker client."""
        with patch.dict(os.environ, self.environment, clear=True):
            result = CliRunner().invoke(cli, arguments)
        code, error = result.exit_code, result.stderr
        if isinstance(result.exception, TrainerError):
            code, error = result.exception.exit_code, f"{error}Error: {result.exception}\n"
        elif result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return subprocess.CompletedProcess(arguments, code, result.stdout, error)

    def refused(self, *arguments: str, code: int = 2, **more: Any) -> str:
        return error_line(self.trainer(*arguments, **more), code)


@pytest.fixture(params=[pytest.param(None, marks=needs_kubectl)])
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A Kubernetes server and the command line configured for it; skips without kubectl."""
    with kube_server(tmp_path) as (kube, config):
        yield Cluster(kube, config)
