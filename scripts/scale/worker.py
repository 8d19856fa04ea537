"""One process of a run, started like `trainer train`, that also logs losses and variables.

    python scripts/scale/worker.py NOTES FLAGS_OF_TRAINER_TRAIN...

NOTES gets one line of JSON per step with the loss of this process and, after training, one line with the
digest of every variable on each of this process's replicas.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.cli import main
from trainer.cli.bootstrap import import_tensorflow
from trainer.compat import private


def _note_steps(notes: Path) -> None:
    """Patch `TrainStep.run` to append the results of each call."""
    from trainer.training.step import TrainStep

    run = TrainStep.run

    def logged(self: TrainStep, block: Any, view: Any) -> Any:
        sums = run(self, block, view)
        rows = [{"step": block.first_step + index, **vars(step_sums)} for index, step_sums in enumerate(sums)]
        _append(notes, rows)
        return sums

    TrainStep.run = logged  # type: ignore[method-assign]


def _note_variables(notes: Path) -> None:
    """Patch `train` to append the digests of this process's variables at the end, one per replica."""
    import trainer.run as module

    train: Callable[..., Any] = vars(module)["train"]

    def logged(learner: Any, dataset: Any, spec: Any, cluster: Any, *rest: Any) -> Any:
        result = train(learner, dataset, spec, cluster, *rest)
        digests = {
            name: [
                hashlib.sha256(value.numpy().tobytes()).hexdigest()
                for value in cluster.strategy.experimental_local_results(variable)
            ]
            for name, variable in learner.variables().items()
        }
        _append(notes, [{"digests": digests}])
        return result

    vars(module)["train"] = logged


def _use_all_logical_cpus() -> None:
    """Let each process of several use more than one CPU device, as it can use more than one GPU.

    TensorFlow uses one CPU per process, regardless of their number (tensorflow 2.21,
    CollectiveAllReduceExtended._initialize_local_devices), but all GPUs. The number of logical CPUs is set
    before the strategy is created, so it is known there.
    """
    import tensorflow as tf
    from tensorflow.python.distribute import collective_all_reduce_strategy as module

    def devices(self: Any, resolver: Any, worker_device: str) -> tuple[tuple[str, ...], str]:
        configured = tf.config.get_logical_device_configuration(tf.config.list_physical_devices("CPU")[0])
        count = len(configured or [None])
        return tuple(f"{worker_device}/device:CPU:{index}" for index in range(count)), "CPU"

    private(module.CollectiveAllReduceExtended, "_initialize_local_devices", "tensorflow")
    module.CollectiveAllReduceExtended._initialize_local_devices = devices


def _append(notes: Path, rows: list[dict[str, Any]]) -> None:
    with notes.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    import_tensorflow()
    _note_steps(Path(sys.argv[1]))
    _note_variables(Path(sys.argv[1]))
    _use_all_logical_cpus()
    main(["train", *sys.argv[2:]])
