"""The weights that a network begins with.

In: the run's seed. Out: one initializer after the other, each with a seed of its own. Keras by itself takes
these from Python's global generator, which any other thread may use at the same moment: one that waits
a random time before it asks a bucket again would change the weights.
"""

from __future__ import annotations

import random
from typing import Any

import keras

_MOST = 10**9
"""As Keras has it."""


class Kernels:
    """Asked for in the order of the layers, it gives the same for the same seed."""

    def __init__(self, seed: int) -> None:
        """`seed`, 0 to 2**31 - 1, is the run's."""
        self.seed = seed
        self._random = random.Random(seed)

    def glorot(self) -> keras.Initializer:
        """Return the one for a layer with any activation (Glorot and Bengio 2010, uniform)."""
        return keras.initializers.GlorotUniform(seed=self._random.randint(1, _MOST))

    def he(self) -> keras.Initializer:
        """Return the one for a layer before ReLU (He et al. 2015, normal)."""
        return keras.initializers.HeNormal(seed=self._random.randint(1, _MOST))

    def seeded(self, config: Any) -> Any:
        """Return the config of an initializer, as Keras serializes it, with a seed if it draws numbers."""
        if not isinstance(config, dict) or "seed" not in config.get("config", {}):
            return config
        return {**config, "config": {**config["config"], "seed": self._random.randint(1, _MOST)}}
