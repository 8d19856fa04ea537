"""The weights that a network begins with.

In: the run's seed. Out: one initializer after the other, each with a seed of its own. Keras by itself takes
these from Python's global generator, which any other thread may use at the same moment: one that waits
a random time before it asks a bucket again would change the weights.
"""

from __future__ import annotations

import random
from typing import Any

import keras
import numpy as np

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

    def normal(self, deviation: float) -> keras.Initializer:
        """Return a normal one with this standard deviation."""
        return keras.initializers.RandomNormal(stddev=deviation, seed=self._random.randint(1, _MOST))

    def dirac(self) -> keras.Initializer:
        """Return one for a convolution that passes its inputs on, beside random filters."""
        return Dirac(seed=self._random.randint(1, _MOST))


class Dirac(keras.initializers.Initializer):  # type: ignore[misc]
    """The identity in as many filters as there are inputs (Zagoruyko and Komodakis 2017), then uniform."""

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
