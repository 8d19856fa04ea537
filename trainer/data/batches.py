"""Batches as a pure function of (seed, epoch, position).

In: a seed, an epoch, a step. Out: which images make the batch. Nothing is remembered, so a
run can start at any step, and any number of replicas sees the same global batches.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# Keeps the order of the images apart from other uses of the same seed.
_ORDER_STREAM = 0x0D


def steps_per_epoch(count: int, global_batch_size: int) -> int:
    """Return how many batches `count` images make; the last one may be short."""
    return math.ceil(count / global_batch_size)


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray[Any, Any]:
    """Return the order of `count` images in `epoch` (from 0): a permutation, int64 [count].

    Philox is counter-based (Salmon et al. 2011): the key alone fixes the stream, on any machine.
    """
    key = (seed << 64) | (_ORDER_STREAM << 56) | epoch
    return np.random.Generator(np.random.Philox(key=key)).permutation(count)


def batch_indices(seed: int, step: int, count: int, global_batch_size: int) -> np.ndarray[Any, Any]:
    """Return the images of the batch of `step` (from 0), int64 [at most global_batch_size].

    Steps are counted through all epochs. Each epoch holds every image once; its last batch
    is short when the batch size doesn't divide the count.
    """
    epoch, position = divmod(step, steps_per_epoch(count, global_batch_size))
    start = position * global_batch_size
    return epoch_order(seed, epoch, count)[start : start + global_batch_size]
