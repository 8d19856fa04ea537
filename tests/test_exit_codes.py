"""Every exit code of the table from a real container, and what a cluster does about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from docker import DockerClient
from docker_engine import end, start, wait_for_line

from trainer.exits import EXIT_CODES
from trainer.launch.accelerators import find_accelerator
from trainer.launch.kubernetes import Cluster, objects_of
from trainer.launch.plan import Plan
from trainer.spec import load_spec

TRAIN = ["train", "--output", "/out", "--run-name"]
QUICK = ["--set", "train.epochs=2"]
ALONE = {"TRAINER_WORKERS": "2", "TRAINER_SERVICE": "peers", "JOB_COMPLETION_INDEX": "0"}
# Words, options of the container, and what is said; nothing is said where there is no time for it.
CASES: dict[int, tuple[Sequence[str], dict[str, Any], str]] = {
    0: ([*TRAIN, "fine", *QUICK], {}, "report"),
    1: ([*TRAIN, "broken", *QUICK], {"is_broken": True}, "of the test"),
    2: ([*TRAIN, "typo", "--set", "train.epoks=3"], {}, "Did you mean train.epochs?"),
    4: ([*TRAIN, "poor", *QUICK, "--assert-accuracy-at-least", "1"], {}, "less accurate than was asked for"),
    65: ([*TRAIN, "nothing", "--data", "/nowhere"], {}, "Error: "),
    69: ([*TRAIN, "gpu", "--require-accelerator", "gpu"], {}, "Error: "),
    70: ([*TRAIN, "wild", "--set", "optimizer.learning_rate=1e30", *QUICK], {}, "Error: "),
    75: ([*TRAIN, "alone", "--set", "train.meet_seconds=2"],
         {"environment": ALONE, "hostname": "pets-0"}, "Error: "),
    137: ([*TRAIN, "large"], {"mem_limit": "200m"}, ""),
    143: ([*TRAIN, "stopped", "--set", "train.epochs=500"], {"is_stopped": True}, "the checkpoint is safe"),
}  # fmt: skip
BROKEN = 'raise RuntimeError("of the test")\n'


def action_of(code: int) -> str:
    """Return what Kubernetes does when a container ends with `code`: the first rule that fits counts."""
    plan = Plan("gke", "pets", load_spec(None, "demo"), "registry/trainer", find_accelerator("cpu"))
    policy = objects_of(plan, Cluster())[0]["spec"]["podFailurePolicy"]
    for rule in policy["rules"]:
        if code in rule.get("onExitCodes", {"values": ()})["values"]:
            return str(rule["action"])
    return "Count" if code else "-"


def test_there_is_a_case_for_every_code() -> None:
    assert set(CASES) == set(EXIT_CODES)


@pytest.mark.engine
@pytest.mark.parametrize("code", CASES)
def test_a_container_ends_with_it_and_the_policy_is_the_tables(
    code: int, engine: DockerClient, output: Path, tmp_path: Path
) -> None:
    words, options, said = CASES[code]
    is_broken, is_stopped = (options.get(name, False) for name in ("is_broken", "is_stopped"))
    given = {name: value for name, value in options.items() if not name.startswith("is_")}
    if is_broken:
        (module := tmp_path / "run.py").write_text(BROKEN)
        module.chmod(0o644)
        given["mounted"] = {str(module): "/opt/package/trainer/run.py"}
    container = start(engine, output, *words, **given)
    if is_stopped:
        wait_for_line(container, '"event": "epoch"')
        container.kill("SIGTERM")
    ended, text = end(container)
    assert (ended, said in text) == (code, True), text
    assert ("Traceback" in text) == (code == 1)
    assert action_of(ended) == EXIT_CODES[code][1]
