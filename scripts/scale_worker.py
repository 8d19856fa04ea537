"""One process of a run as `trainer train` starts it, which also notes what a run doesn't write down.

    python scale_worker.py NOTES FLAGS_OF_TRAINER_TRAIN...

NOTES gets a line of JSON a step, with the loss that this process saw, and when training is over one
with the digest of every variable, on each of this process's own replicas.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.cli import main
from trainer.cli.environment import import_tensorflow


def _note_steps(notes: Path) -> None:
    """Let each call of the compiled steps append what they came to."""
    from trainer.train.step import Stepper

    run = Stepper.run

    def noted(self: Stepper, block: Any, view: Any) -> Any:
        sums = run(self, block, view)
        rows = [{"step": block.first_step + index, **vars(each)} for index, each in enumerate(sums)]
        _append(notes, rows)
        return sums

    Stepper.run = noted  # type: ignore[method-assign]


def _note_variables(notes: Path) -> None:
    """Let the end of training append what this process's variables hold, each replica's by itself."""
    import trainer.run as room

    train: Callable[..., Any] = room.train

    def noted(learner: Any, dataset: Any, spec: Any, cluster: Any, *rest: Any) -> Any:
        result = train(learner, dataset, spec, cluster, *rest)
        digests = {
            name: [
                hashlib.sha256(each.numpy().tobytes()).hexdigest()
                for each in cluster.strategy.experimental_local_results(variable)
            ]
            for name, variable in learner.variables().items()
        }
        _append(notes, [{"digests": digests}])
        return result

    room.train = noted


def _use_all_logical_cpus() -> None:
    """Let a process of several have more than one CPU device, as it may have more than one GPU.

    TensorFlow takes one CPU a process, whatever their number (tensorflow 2.21,
    CollectiveAllReduceExtended._initialize_local_devices); of GPUs it takes all. The number of logical
    CPUs is set before the strategy is made, so it is known there.
    """
    import tensorflow as tf
    from tensorflow.python.distribute import collective_all_reduce_strategy as room

    def devices(self: Any, resolver: Any, worker_device: str) -> tuple[tuple[str, ...], str]:
        configured = tf.config.get_logical_device_configuration(tf.config.list_physical_devices("CPU")[0])
        count = len(configured or [None])
        return tuple(f"{worker_device}/device:CPU:{index}" for index in range(count)), "CPU"

    room.CollectiveAllReduceExtended._initialize_local_devices = devices


def _append(notes: Path, rows: list[dict[str, Any]]) -> None:
    with notes.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    import_tensorflow()
    _note_steps(Path(sys.argv[1]))
    _note_variables(Path(sys.argv[1]))
    _use_all_logical_cpus()
    main(["train", *sys.argv[2:]])
