"""Deterministic batch order as a pure function of (seed, epoch, position).

The order needs no state, so a run can start at any step, and any number of processes produces the same global
batches.

Positions and images are divided into lanes (virtual shards). An image stays in its lane: each epoch shuffles
the images of a lane over the positions of that lane. Lane x belongs to process x modulo the number of
processes. Each process therefore has an even share of every batch and needs only the images of its own lanes.

A data set in shards is shuffled differently: each epoch visits the shards in a new random order and shuffles
the images within a window of a few shards. The lanes are then contiguous parts of each window, so that a
process needs few shards at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_LANES = 96
"""Divisible by the usual numbers of hosts."""
# With fewer images in a lane, shuffling has little effect.
_MIN_IMAGES_PER_LANE = 4
# Each divides the one before: the lane of an image for a large count determines its lane for a smaller one.
_LANE_COUNTS = (MAX_LANES, 24, 4, 1)

# Separates the stream of the image order from other uses of the same seed.
_ORDER_STREAM = 0x0D

Lanes = NDArray[np.int64]


def steps_per_epoch(count: int, global_batch_size: int) -> int:
    """Return the number of batches for `count` images; the last batch may be short."""
    return math.ceil(count / global_batch_size)


def initial_hosts(numbers: NDArray[np.int64], hosts: int) -> Lanes:
    """Return the process, of `hosts`, that first reads each image, int64 [count]: the owner of its lane.

    Lanes are counted out of `MAX_LANES`. `numbers`, int64 [count], are the indices of the images in the
    source.
    """
    return numbers % MAX_LANES % hosts


@dataclass(frozen=True)
class Shards:
    """Distribution of the images of a split over shards."""

    starts: NDArray[np.int64]
    """Position of the first image of each shard, followed by the number of images: int64 [shards + 1]."""
    per_window: int
    """Number of shards in one shuffle window."""

    def order(self, random: np.random.Generator) -> tuple[Lanes, Lanes]:
        """Return all images, shard by shard in random order, and the window of each: int64 [count] each."""
        shards = random.permutation(len(self.starts) - 1)
        images = np.concatenate([np.arange(self.starts[shard], self.starts[shard + 1]) for shard in shards])
        windows = np.repeat(np.arange(len(shards)) // self.per_window, np.diff(self.starts)[shards])
        return images, windows


@dataclass(frozen=True)
class EpochSampler:
    """Order of an epoch: `count` images in batches of `global_batch_size`; the last batch may be short.

    `group_size` is the number of consecutive rows of a batch, counted from its first row, that share a lane:
    2 if pairs of images are mixed (mixup), otherwise 1.
    """

    count: int
    global_batch_size: int
    group_size: int = 1
    shards: Shards | None = None

    @property
    def lane_count(self) -> int:
        """Number of lanes."""
        return next(
            lanes for lanes in _LANE_COUNTS if lanes * _MIN_IMAGES_PER_LANE <= self.count or lanes == 1
        )

    def lanes_of_images(self, numbers: NDArray[np.int64]) -> Lanes:
        """Return the lane of each image, int64 [count]; each lane has as many images as positions.

        The lane of most images follows from their number alone, so a process can compute it before it has
        read any image. Only the surplus images of a lane move to another lane.
        """
        lanes = numbers % self.lane_count
        positions = np.bincount(self._groups() % self.lane_count, minlength=self.lane_count)
        images = np.bincount(lanes, minlength=self.lane_count)
        # The rank of each image within its lane.
        rank = np.empty_like(lanes)
        rank[np.argsort(lanes, kind="stable")] = np.arange(self.count) - np.repeat(
            np.cumsum(images) - images, images
        )
        free = np.maximum(0, positions - images)
        lanes[rank >= positions[lanes]] = np.repeat(np.arange(self.lane_count), free)
        return lanes

    def order(self, seed: int, epoch: int, images: Lanes) -> tuple[NDArray[np.int64], Lanes]:
        """Return the image and the lane at each position of `epoch` (from 0), int64 [count] each.

        `images` are the lanes of the images. Philox is a counter-based generator (Salmon et al. 2011): the
        key alone determines the stream, on any machine.
        """
        key = (seed << 64) | (_ORDER_STREAM << 56) | epoch
        random = np.random.Generator(np.random.Philox(key=key))
        order, lanes = np.empty(self.count, np.int64), self._lanes_of_positions(random)
        if self.shards is not None:
            # Each window takes as many positions as it has images; each lane takes a contiguous part of the
            # window.
            shuffled, windows = self.shards.order(random)
            order[np.lexsort((random.random(self.count), self._ranks_in_window()[lanes], windows))] = shuffled
            return order, lanes
        order[np.argsort(lanes, kind="stable")] = np.lexsort((random.random(self.count), images))
        return order, lanes

    def _ranks_in_window(self) -> Lanes:
        """Return the position of each lane in a window, int64 [lanes]; lanes of one process are adjacent.

        This holds for any number of processes that is a power of two and divides the number of lanes: the
        digits are reversed, so that the lowest digit of a lane becomes the highest.
        """
        lanes, digits = self.lane_count, np.arange(self.lane_count)
        ranks = np.zeros(lanes, np.int64)
        for radix in (2, 2, 2, 2, 2, 3):
            if lanes % radix == 0:
                lanes //= radix
                ranks += digits % radix * lanes
                digits //= radix
        return ranks

    def _groups(self) -> Lanes:
        """Return the group of each position, int64 [count]; all positions of a group share a lane."""
        step, row = np.divmod(np.arange(self.count), self.global_batch_size)
        return step * math.ceil(self.global_batch_size / self.group_size) + row // self.group_size

    def _lanes_of_positions(self, random: np.random.Generator) -> Lanes:
        """Return the lane of each position, int64 [count].

        The lanes take turns, in a new order each round: x becomes (a x + b) modulo the number of lanes, with
        a coprime to that number. For every divisor d of the number of lanes this maps residue classes modulo
        d to residue classes modulo d. With d processes, each aligned run of d groups therefore has one group
        for each process. Positions that do not fill a round keep their order, so that each lane has the same
        number of positions in every epoch.
        """
        lanes, groups = self.lane_count, self._groups()
        rounds, lane = np.divmod(groups, lanes)
        factors, offsets = (np.full(int(rounds[-1]) + 1, value) for value in (1, 0))
        if self.global_batch_size % self.group_size == 0:
            whole = self.count // self.group_size // lanes
            coprime = np.array([factor for factor in range(1, lanes + 1) if math.gcd(factor, lanes) == 1])
            factors[:whole] = random.choice(coprime, whole)
            offsets[:whole] = random.integers(lanes, size=whole)
        return (factors[rounds] * lane + offsets[rounds]) % lanes
