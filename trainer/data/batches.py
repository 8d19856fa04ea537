"""Batches as a pure function of (seed, epoch, position).

In: a seed, an epoch, how many images there are, and the size of a batch. Out: which image stands at
which place. Nothing is remembered, so a run can start at any step, and any number of processes sees
the same global batches.

Places and images are divided into lanes, and an image stays in its lane: each epoch shuffles the images
of a lane over the places of that lane. A process has the lanes whose number leaves its own when it is
divided by the number of processes: so it has an even share of every batch, and only ever needs the
images of its lanes.

Of a data set in shards, each epoch takes the shards in another order, a few at a time, and shuffles among
those. Then the lanes are stretches of these few shards, so that a process needs few of them at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_LANES = 96
"""Divisible by the usual numbers of hosts."""
# With fewer images than that in a lane there would be little left to shuffle.
_LEAST_IN_A_LANE = 4
# Each divides the one before: a process that knows an image's lane among the most knows it among fewer.
_LANE_COUNTS = (MOST_LANES, 24, 4, 1)

# Keeps the order of the images apart from other uses of the same seed.
_ORDER_STREAM = 0x0D

Lanes = NDArray[np.int64]


def steps_per_epoch(count: int, global_batch_size: int) -> int:
    """Return how many batches `count` images make; the last one may be short."""
    return math.ceil(count / global_batch_size)


def first_owners(numbers: NDArray[np.int64], hosts: int) -> Lanes:
    """Return which of `hosts` processes reads each image first, int64 [count]: the one of its first lane.

    `numbers`, [count], are those that the images had when they were found.
    """
    return numbers % MOST_LANES % hosts


@dataclass(frozen=True)
class Shards:
    """How the images of a split lie in shards."""

    starts: NDArray[np.int64]
    """The place of the first image of each shard, and at the end that of all: int64 [shards + 1]."""
    together: int
    """Among how many shards the images are shuffled."""

    def order(self, random: np.random.Generator) -> tuple[Lanes, Lanes]:
        """Return all images, shard by shard in a random order, and the window of each: int64 [count] each."""
        shards = random.permutation(len(self.starts) - 1)
        images = np.concatenate([np.arange(self.starts[each], self.starts[each + 1]) for each in shards])
        windows = np.repeat(np.arange(len(shards)) // self.together, np.diff(self.starts)[shards])
        return images, windows


@dataclass(frozen=True)
class Plan:
    """The places of an epoch: `count` images in batches of `global_batch_size`, the last perhaps short.

    `together` is how many neighbours in a batch, counted from its first row, are in one lane: 2 where
    they may be mixed.
    """

    count: int
    global_batch_size: int
    together: int = 1
    shards: Shards | None = None

    @property
    def lane_count(self) -> int:
        """How many lanes there are."""
        return next(lanes for lanes in _LANE_COUNTS if lanes * _LEAST_IN_A_LANE <= self.count or lanes == 1)

    def lanes_of_images(self, numbers: NDArray[np.int64]) -> Lanes:
        """Return the lane of each image, as many in each as it has places, int64 [count].

        Most get the lane that follows from their number alone, which a process knows before it has read
        any; only what a lane has too many of moves.
        """
        lanes = numbers % self.lane_count
        wanted = np.bincount(self._groups() % self.lane_count, minlength=self.lane_count)
        found = np.bincount(lanes, minlength=self.lane_count)
        # The place of each image among those of its lane.
        rank = np.empty_like(lanes)
        rank[np.argsort(lanes, kind="stable")] = np.arange(self.count) - np.repeat(
            np.cumsum(found) - found, found
        )
        lanes[rank >= wanted[lanes]] = np.repeat(np.arange(self.lane_count), np.maximum(0, wanted - found))
        return lanes

    def order(self, seed: int, epoch: int, images: Lanes) -> tuple[NDArray[np.int64], Lanes]:
        """Return the image and the lane at each place in `epoch` (from 0), int64 [count] each.

        `images` are the images' lanes. Philox is counter-based (Salmon et al. 2011): the key alone fixes
        the stream, on any machine.
        """
        key = (seed << 64) | (_ORDER_STREAM << 56) | epoch
        random = np.random.Generator(np.random.Philox(key=key))
        order, places = np.empty(self.count, np.int64), self._lanes_of_places(random)
        if self.shards is not None:
            # As many places as a window has images, in their lanes: each lane is a stretch of the window.
            taken, windows = self.shards.order(random)
            order[np.lexsort((random.random(self.count), self._stretches()[places], windows))] = taken
            return order, places
        order[np.argsort(places, kind="stable")] = np.lexsort((random.random(self.count), images))
        return order, places

    def _stretches(self) -> Lanes:
        """Return where each lane lies in a window, int64 [lanes]: those of a process beside each other.

        That holds for any power of two of processes: the lowest digit of a lane becomes the highest.
        """
        lanes, rest = self.lane_count, np.arange(self.lane_count)
        places = np.zeros(lanes, np.int64)
        for radix in (2, 2, 2, 2, 2, 3):
            if lanes % radix == 0:
                lanes //= radix
                places += rest % radix * lanes
                rest //= radix
        return places

    def _groups(self) -> Lanes:
        """Return which group each place is in, int64 [count]; those of a group are in one lane."""
        step, row = np.divmod(np.arange(self.count), self.global_batch_size)
        return step * math.ceil(self.global_batch_size / self.together) + row // self.together

    def _lanes_of_places(self, random: np.random.Generator) -> Lanes:
        """Return the lane of each place, int64 [count].

        The lanes take turns, in another order each time round: lane x comes where a x + b was, with a that
        has no divisor in common with their number. That maps what leaves the same rest to what leaves the
        same rest, for every number that divides theirs: so as many neighbours have one each of as many
        processes. What doesn't fill a round stays in order, so that a lane has as many places each epoch.
        """
        lanes, groups = self.lane_count, self._groups()
        rounds, lane = np.divmod(groups, lanes)
        factor, offset = (np.full(int(rounds[-1]) + 1, value) for value in (1, 0))
        if self.global_batch_size % self.together == 0:
            whole = self.count // self.together // lanes
            coprime = np.array([each for each in range(1, lanes + 1) if math.gcd(each, lanes) == 1])
            factor[:whole] = random.choice(coprime, whole)
            offset[:whole] = random.integers(lanes, size=whole)
        return (factor[rounds] * lane + offset[rounds]) % lanes
