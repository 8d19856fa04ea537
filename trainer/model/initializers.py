"""Seeded weight initializers.

Each initializer gets its own seed, drawn from the run's seed. Keras by default draws these seeds from
Python's global generator, which other threads may use at the same time: a thread that sleeps for a random
time before it retries a request would change the weights.
"""

from __future__ import annotations

import random
from typing import Any

import keras
import numpy as np

_MOST = 10**9
"""Upper limit of seeds, as in Keras."""


class Kernels:
    """Factory for initializers: the same seed and order of calls give the same initializers."""

    def __init__(self, seed: int) -> None:
        """seed: the run's seed, 0 to 2**31 - 1."""
        self.seed = seed
        self._random = random.Random(seed)

    def glorot(self) -> keras.Initializer:
        """Return an initializer for layers with any activation (Glorot and Bengio 2010, uniform)."""
        return keras.initializers.GlorotUniform(seed=self._random.randint(1, _MOST))

    def he(self) -> keras.Initializer:
        """Return an initializer for layers before ReLU (He et al. 2015, normal)."""
        return keras.initializers.HeNormal(seed=self._random.randint(1, _MOST))

    def seeded(self, config: Any) -> Any:
        """Return the serialized Keras initializer `config`, with a seed if it is a random one."""
        if not isinstance(config, dict) or "seed" not in config.get("config", {}):
            return config
        return {**config, "config": {**config["config"], "seed": self._random.randint(1, _MOST)}}

    def normal(self, deviation: float) -> keras.Initializer:
        """Return a normal initializer with this standard deviation."""
        return keras.initializers.RandomNormal(stddev=deviation, seed=self._random.randint(1, _MOST))

    def dirac(self) -> keras.Initializer:
        """Return a convolution initializer that passes the inputs on, next to random filters."""
        return Dirac(seed=self._random.randint(1, _MOST))


class Dirac(keras.initializers.Initializer):  # type: ignore[misc]
    """Identity in as many filters as there are inputs (Zagoruyko and Komodakis 2017), others uniform."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Return a kernel of `shape`, [height, width, in, out]."""
        uniform = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform", seed=self.seed)
        kernel = np.array(uniform(shape, dtype="float32"))
        passed = min(shape[2:])
        kernel[..., :passed] = 0.0
        kernel[shape[0] // 2, shape[1] // 2, :passed, :passed] = np.eye(passed)
        return keras.ops.convert_to_tensor(kernel, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the seed."""
        return {"seed": self.seed}
