"""Benchmark of the training speed of a spec on this machine, with its bottleneck.

It measures the compiled step alone, the input pipeline alone, and both together as in training. It writes no
files.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import tensorflow as tf

from trainer.augment.transforms import find_view
from trainer.data.dataset import Dataset
from trainer.data.sampler import steps_per_epoch
from trainer.distributed.devices import Cluster
from trainer.errors import StoppedError, UsageError
from trainer.spec import RunSpec
from trainer.training import build_learner
from trainer.training.history import fitting_steps
from trainer.training.phase_work import build_train_step
from trainer.training.prefetch import BatchBlock
from trainer.training.scaling import require_equal_shares, require_whole_batch, scaled_spec

_ROUNDS = 3
_PARTS = 3
_GOOD_SHARE = 0.9
"""Share of the slower part's speed that training reaches without another bottleneck."""
_SEPARATE_RATIO = 5.0
"""Ratio of speeds above which the faster part does not noticeably slow down the other."""

Limit = Literal["step", "data", "processor"]


@dataclass(frozen=True)
class Speeds:
    """Images per second, each the median of several rounds, and the settings that were used."""

    step: float
    """The compiled step, including augmentation, on batches that stay on the device."""
    pipeline: float
    """The input pipeline, with nothing that consumes time to use the batches."""
    together: float
    compile_seconds: float
    steps_per_call: int
    """Less than the spec's value if an epoch or a block of the prefetcher has fewer steps."""
    precision: str
    xla: bool
    devices: str
    replicas: int
    global_batch_size: int

    @property
    def limit(self) -> Limit:
        """The bottleneck: step or data, or 'processor' if they slow down each other."""
        slower, faster = sorted((self.step, self.pipeline))
        if self.together < _GOOD_SHARE * slower and faster < _SEPARATE_RATIO * slower:
            return "processor"
        return "step" if self.step <= self.pipeline else "data"

    def sentence(self) -> str:
        """Return a description of the bottleneck."""
        ratio = self.pipeline / self.step
        if self.limit == "step":
            return f"the step: the input pipeline is {ratio:.1f} times as fast"
        if self.limit == "data":
            return f"the data: the step is {1 / ratio:.1f} times as fast as the input pipeline"
        share = self.together / min(self.step, self.pipeline)
        shared = (
            "the processor, which step and input pipeline share"
            if self.devices.startswith("cpu")
            else "the transfer to the device"
        )
        return f"{shared}: together they reach {share:.0%} of the speed of the slower one"

    def advice(self) -> str:
        """Return advice on how to speed up training."""
        if self.limit == "step":
            if self.precision == "float32":
                return "train.precision=bfloat16 on devices that support it, a smaller model, or more devices"
            return "a smaller model or data.image_size, or more devices"
        if self.limit == "data":
            return "a larger data.cache_mib, so that images are decoded once; a faster disk; more cores"
        return "more cores, or a larger data.cache_mib, so that images are decoded once"


def measure_speeds(
    spec: RunSpec, dataset: Dataset, cluster: Cluster, seconds: float, is_stopped: Callable[[], bool]
) -> Speeds:
    """Measure for about `seconds` after compiling. Raises StoppedError once `is_stopped` returns True."""
    require_whole_batch(spec, cluster.strategy.num_replicas_in_sync, len(dataset.train.labels))
    spec = scaled_spec(spec, cluster.strategy.num_replicas_in_sync)
    if cluster.device_kind == "TPU":
        require_equal_shares(spec, cluster.strategy.num_replicas_in_sync, len(dataset.train.labels))
    bench = _Bench(spec, dataset, cluster, is_stopped)
    compile_seconds = bench.warm_up()
    part_seconds = seconds / (_ROUNDS * _PARTS)
    parts = (bench.step, bench.pipeline, bench.together)
    rates = [[part(part_seconds) for part in parts] for _ in range(_ROUNDS)]
    step, pipeline, together = (statistics.median(part) for part in zip(*rates, strict=True))
    return Speeds(
        step=step,
        pipeline=pipeline,
        together=together,
        compile_seconds=compile_seconds,
        steps_per_call=bench.steps_per_call,
        precision=bench.learner.precision,
        xla=bench.train_step.uses_xla,
        devices=cluster.description,
        replicas=cluster.strategy.num_replicas_in_sync,
        global_batch_size=spec.train.global_batch_size,
    )


class _Bench:
    """A learner, its data, and the three measurements."""

    def __init__(
        self, spec: RunSpec, dataset: Dataset, cluster: Cluster, is_stopped: Callable[[], bool]
    ) -> None:
        self.is_stopped = is_stopped
        steps = steps_per_epoch(len(dataset.train.labels), spec.train.global_batch_size)
        self.learner = build_learner(spec, len(dataset.class_names), steps, cluster)
        phase = self.learner.phases[-1]
        if phase.is_logistic:
            raise UsageError(
                "There are no steps to measure: the head is fitted by logistic regression.",
                "Set train.finetune.probe=steps, or more epochs.",
                received="finetune.probe=logistic",
            )
        self.train_step, self.prefetcher = build_train_step(self.learner, dataset, spec, cluster, phase=phase)
        self.view = find_view(spec.augment, spec.data.image_size, spec.train.epochs - 1, spec.train.epochs)
        steps_per_call = spec.train.steps_per_call
        self.is_auto = steps_per_call == "auto"
        self.prefetcher.block_steps = 1 if steps_per_call == "auto" else steps_per_call
        self.steps_per_call = 0

    def warm_up(self) -> float:
        """Compile for all batch sizes of an epoch, determine the steps per call, and return the seconds.

        The seconds are those of compiling alone.
        """
        started = time.perf_counter()
        steps = self.learner.steps_per_epoch
        for first in {0, steps - 1}:  # the last batch may be short
            self._run(next(self.prefetcher.blocks(first, first + 1)))
        seconds = time.perf_counter() - started
        # As in training, the steps increase until a call takes long enough or a block reaches its maximum.
        while (block := next(self._blocks())).steps > self.steps_per_call:
            self.steps_per_call = block.steps
            started = time.perf_counter()
            self._run(block)
            if self.is_auto:
                self.prefetcher.block_steps = fitting_steps(block.steps, time.perf_counter() - started)
        self.steps_per_call = block.steps
        return seconds

    def step(self, seconds: float) -> float:
        """Return the images per second of one block, repeated."""
        block = next(self._blocks())
        on_device = replace(block, images=tf.identity(block.images))
        return self._measure_rate(itertools.repeat(on_device), seconds, self._run)

    def pipeline(self, seconds: float) -> float:
        """Return the images per second of blocks that are read and discarded."""
        return self._measure_rate(self._blocks(), seconds, lambda block: None)

    def together(self, seconds: float) -> float:
        """Return the images per second of training, with prefetch."""
        return self._measure_rate(self._blocks(), seconds, self._run)

    def _blocks(self) -> Iterator[BatchBlock]:
        return self.prefetcher.blocks(0, 1 << 40)

    def _run(self, block: BatchBlock) -> None:
        self.train_step.run(block, self.view)

    def _measure_rate(
        self, blocks: Iterator[BatchBlock], seconds: float, use: Callable[[BatchBlock], None]
    ) -> float:
        next(blocks)  # not measured: the pipeline has to start first
        images, started = 0, time.perf_counter()
        for block in blocks:
            use(block)
            images += block.steps * block.global_rows
            if self.is_stopped():
                raise StoppedError("Stopped on request. The measurement is discarded.")
            if time.perf_counter() - started >= seconds:
                break
        return images / (time.perf_counter() - started)
