"""Construction of the train step and its input pipeline, for training and for benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trainer.data.dataset import Dataset
from trainer.data.labels import label_counts
from trainer.distributed.devices import Cluster
from trainer.spec import RunSpec
from trainer.train.device_cache import fits, put_on_devices
from trainer.train.features import FeatureView
from trainer.train.learner import Learner
from trainer.train.objective import objective_of
from trainer.train.phases import Phase
from trainer.train.prefetch import BatchPrefetcher
from trainer.train.step import TrainStep, class_weights


def build_parts(
    learner: Learner,
    dataset: Dataset,
    spec: RunSpec,
    cluster: Cluster,
    borders: Sequence[int] = (),
    phase: Phase | None = None,
    features: NDArray[np.float32] | None = None,
) -> tuple[TrainStep, BatchPrefetcher]:
    """Return the train step and its input pipeline, for this process's share of the batches.

    borders: steps at which a block has to end before it reaches them. phase: by default the first one.
    features: those of the training images, [images, width], which replace the images in a phase with a frozen
    backbone.
    """
    counts = label_counts(dataset.train.labels, len(dataset.class_names))
    objective, count = objective_of(spec.data.labels), len(dataset.train.labels)
    weights = class_weights(spec.train.class_weights, dataset.class_names, counts, objective, count)
    split = dataset.train if features is None else replace(dataset.train, pixels=FeatureView(features))
    is_resident = features is None and fits(split, cluster)
    feed = BatchPrefetcher(
        split,
        spec.train.global_batch_size,
        spec.seed,
        together=2 if spec.augment.mixup or spec.augment.cutmix else 1,
        index=cluster.process_index,
        hosts=cluster.process_count,
        resident=is_resident,
        borders=borders,
        alternating=spec.augment.flip == "alternating",
    )
    images = put_on_devices(dataset.train.pixels.gather(feed.own), cluster.strategy) if is_resident else None
    return TrainStep(learner, spec, weights, cluster, images, phase, features is not None), feed
