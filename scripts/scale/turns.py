"""One process of a training that is run in timed turns; started by overhead.py.

    python scripts/scale/turns.py FOLDER NAME CORES DATA

Trains the paper's network as `trainer train` does, pinned to CORES (0 or 0,1). Before each turn it waits for
the file FOLDER/NAME-TURN.go; the chief then writes the seconds to FOLDER/NAME-TURN.json. Once FOLDER/NAME.end
exists, several processes measure their all-reduces and write FOLDER/NAME.json.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

CALLS, STEPS = 5, 5
"""Calls per turn, and steps per call."""
BATCH = 20
SIZES = (1, 1 << 12, 1 << 16, 1 << 18, 1 << 20, 1 << 22)
"""Sizes, in floats, of the all-reduces that measure the link."""
_REPEATS = 9
_PAIRS = 6
_STEPS_ALONE = 15


class Turns:
    """Training observer that pauses after each turn, and stops once the end file exists."""

    def __init__(self, folder: Path, name: str, is_chief: bool) -> None:
        self.folder, self.name, self.is_chief = folder, name, is_chief
        self.calls, self.turn, self.began, self.ended = 0, 0, 0.0, False

    def on_call(self, report: Any) -> None:
        """Count a call, and pause at the end of a turn; turn 0 compiles and is not timed."""
        self.calls += 1
        if self.calls % CALLS:
            return
        seconds = time.perf_counter() - self.began
        if self.is_chief:
            write(self.folder / f"{self.name}-{self.turn}.json", seconds)
        self.turn += 1
        while not (self.folder / f"{self.name}-{self.turn}.go").exists():
            if (self.folder / f"{self.name}.end").exists():
                self.ended = True
                return
            time.sleep(0.005)
        self.began = time.perf_counter()

    def on_epoch(self, row: object, epochs: int) -> None: ...

    def on_message(self, message: str) -> None: ...


def write(path: Path, value: object) -> None:
    """Write a JSON file atomically."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value))
    temporary.rename(path)


def main(folder: Path, name: str, data: str) -> None:
    """Train turn by turn, then measure the all-reduces."""
    from trainer.cli.bootstrap import import_tensorflow

    import_tensorflow()
    from trainer.data.load import load_dataset
    from trainer.data.progress import SilentProgress
    from trainer.data.sampler import steps_per_epoch
    from trainer.distributed import join_process_group, read_process_info
    from trainer.distributed.devices import find_cluster
    from trainer.errors import StoppedError
    from trainer.spec import load_spec
    from trainer.training import AsyncCheckpointer, build_learner, train

    # Like a run of the paper's network, without its validations.
    settings = ["train.epochs=1000", "train.validate_every_epochs=1000", f"train.steps_per_call={STEPS}"]
    spec = load_spec(recipe="cats-vs-dogs", settings=settings, overrides={"data.source": data})
    peers = join_process_group(read_process_info(os.environ, ""), {"name": name}, 120.0, lambda message: None)
    cluster = find_cluster(devices="cpu", group=peers)
    dataset = load_dataset(spec.data, folder / "cache", SilentProgress(), lambda rejected: None, peers)
    steps = steps_per_epoch(len(dataset.train.labels), spec.train.global_batch_size)
    learner = build_learner(spec, len(dataset.class_names), steps, cluster)
    turns = Turns(folder, name, cluster.is_chief)
    checkpoints = folder / f"{name}-{cluster.process_index}" / "checkpoints"
    with AsyncCheckpointer(checkpoints) as checkpointer, suppress(StoppedError):
        train(learner, dataset, spec, cluster, checkpointer, turns, dict, lambda: turns.ended)
    if cluster.process_count > 1:
        figures = measure_all_reduces(learner, dataset, spec, cluster)
        if cluster.is_chief:
            write(folder / f"{name}.json", figures)
    peers.all_gather(b"")
    peers.shutdown()
    os._exit(0)


def measure_all_reduces(learner: Any, dataset: Any, spec: Any, cluster: Any) -> dict[str, Any]:
    """Return the seconds of a step with and without its all-reduce, and of all-reduces alone."""
    import numpy as np

    from trainer.augment.transforms import EpochView
    from trainer.spec import sides_of
    from trainer.training.prefetch import BatchPrefetcher
    from trainer.training.step import TrainStep

    prefetcher = BatchPrefetcher(
        dataset.train, BATCH, spec.seed, 1, cluster.process_index, cluster.process_count
    )
    blocks = list(prefetcher.blocks(0, _STEPS_ALONE))
    view = EpochView(*sides_of(spec.data.image_size))
    whole, bare = (TrainStep(learner, spec, np.ones(2, np.float32), cluster) for _ in range(2))
    bare.replicas = 1  # skips the all-reduce; processes then diverge, which does not affect the time
    for train_step in (whole, bare):
        train_step.run(blocks[0], view)
    durations: dict[Any, list[float]] = {whole: [], bare: []}
    for turn in range(_PAIRS):
        for train_step in (whole, bare) if turn % 2 else (bare, whole):
            durations[train_step] += [_seconds(partial(train_step.run, block, view)) for block in blocks]
    all_bare = [
        json.loads(message) for message in cluster.group.all_gather(json.dumps(durations[bare]).encode())
    ]
    shapes = [tuple(weight.shape) for weight in learner.model.trainable_weights] + [(3,)]
    alone = _all_reduce_seconds(cluster, shapes, 10)
    link = {
        size: _all_reduce_seconds(cluster, [(size,)], max(2, min(50, (1 << 22) // size))) for size in SIZES
    }
    return {
        "whole": statistics.mean(durations[whole]),
        "bare": statistics.mean(durations[bare]),
        "slowest": statistics.mean(map(max, zip(*all_bare, strict=True))),
        "gradient_bytes": 4 * int(sum(np.prod(shape) for shape in shapes)),
        "alone": alone,
        "link": {4 * size: seconds for size, seconds in link.items()},
    }


def _all_reduce_seconds(cluster: Any, shapes: list[tuple[int, ...]], times: int) -> float:
    """Return the median seconds of one all-reduce, over the processes, of tensors of these shapes."""
    import tensorflow as tf

    def on_replica(*tensors: tf.Tensor) -> list[tf.Tensor]:
        # Computed here, so that each tensor is on the device of this replica.
        own = [tensor / cluster.process_count for tensor in tensors]
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, own)

    @tf.function
    def run() -> tf.Tensor:
        tensors = [tf.ones(shape) for shape in shapes]
        for _ in tf.range(times):  # each all-reduce depends on the previous one
            results = cluster.strategy.run(on_replica, args=tensors)
            tensors = [cluster.strategy.experimental_local_results(value)[0] for value in results]
        return tf.add_n([tf.reduce_sum(tensor) for tensor in tensors])

    run().numpy()
    return statistics.median(_seconds(lambda: run().numpy()) for _ in range(_REPEATS)) / times


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


if __name__ == "__main__":
    # Before TensorFlow is loaded, because the number of its threads depends on the cores available.
    os.sched_setaffinity(0, {int(core) for core in sys.argv[3].split(",")})
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[4])
