"""Initialization of whitening layers from the training images.

The layers are fitted to a fixed sample of the images before training begins. Each process reads its share of
the sample, and all processes get the same weights.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np

from trainer.data.dataset import Split
from trainer.distributed.devices import Cluster
from trainer.model.whitening import PatchSums, WhiteningConv2D, sum_patches, total_of, whitening_weights
from trainer.train.agreement import HostSync
from trainer.train.learner import Learner

_MOST_IMAGES = 1_000
"""Images evenly spaced over the split: enough for the statistics of a dozen values."""


def whiten_first_layer(learner: Learner, split: Split, cluster: Cluster) -> None:
    """Fit the whitening layer of `learner`, if it has one, to images of `split`; all processes call this."""
    layers = [layer for layer in learner.model.layers if isinstance(layer, WhiteningConv2D)]
    if not layers:
        return
    kernel, bias = whitening_weights(_sums_of_all(split, cluster))
    for layer in layers:
        learner.assign(layer.kernel, kernel)
        learner.assign(layer.bias, bias)
    # The last digit of an eigenvector may differ between CPUs, so all processes use the chief's.
    HostSync(cluster.group).broadcast_variables(learner.variables(), "whitened")


def _sums_of_all(split: Split, cluster: Cluster) -> PatchSums:
    """Return the sums over the sample; each process reads the images that it owns."""
    count = len(split.labels)
    sample = np.unique(np.linspace(0, count - 1, min(count, _MOST_IMAGES)).astype(np.int64))
    own = sample[split.owners(cluster.process_count)[sample] == cluster.process_index]
    sums = sum_patches(split.pixels.gather(own))
    if cluster.process_count == 1:
        return sums
    values = {name: value.tolist() for name, value in asdict(sums).items()}
    parts = [json.loads(each) for each in cluster.group.all_gather(json.dumps(values).encode())]
    return total_of([PatchSums(*(np.array(part[name]) for name in values)) for part in parts])
