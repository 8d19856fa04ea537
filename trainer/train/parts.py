"""What does the steps, and what brings their batches.

In: a learner, its data, a spec and a cluster. Out: a `Stepper` and the `Feed` that fits it, alike for
training and for measuring it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.cluster import Cluster
from trainer.data.dataset import Dataset
from trainer.spec import RunSpec
from trainer.train.feed import Feed
from trainer.train.learner import Learner
from trainer.train.resident import fits, put_on_devices
from trainer.train.step import Stepper, class_weights


def build_parts(
    learner: Learner, dataset: Dataset, spec: RunSpec, cluster: Cluster, borders: Sequence[int] = ()
) -> tuple[Stepper, Feed]:
    """Return both, for this process's share; `borders` are before which steps a block has to end."""
    counts = np.bincount(dataset.train.labels, minlength=len(dataset.class_names))
    weights = class_weights(spec.train.class_weights, dataset.class_names, counts)
    is_resident = fits(dataset.train, cluster)
    feed = Feed(
        dataset.train,
        spec.train.global_batch_size,
        spec.seed,
        together=2 if spec.augment.mixup or spec.augment.cutmix else 1,
        index=cluster.index,
        hosts=cluster.count,
        resident=is_resident,
        borders=borders,
        alternating=spec.augment.flip == "alternating",
    )
    images = put_on_devices(dataset.train.pixels.take(feed.own), cluster.strategy) if is_resident else None
    return Stepper(learner, spec, weights, cluster, images), feed
