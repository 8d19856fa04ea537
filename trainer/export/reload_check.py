"""Check of a SavedModel with TensorFlow alone, without Keras.

The arguments are the model folder and a file of golden predictions. The output is one line of JSON with the
largest difference of a probability, and of a p-value, over both signatures. The script is run by its path in
a fresh process and deliberately imports nothing of this package.
"""

from __future__ import annotations

import json
import sys

import numpy as np


def main(model_path: str, golden_path: str) -> None:
    """Compare the predictions of the model with the golden ones, and print the largest difference."""
    # Model servers have no Keras either, and importing it takes as long as TensorFlow itself.
    sys.modules["keras"] = None  # type: ignore[assignment]
    import tensorflow as tf

    # GPUs round float32 products to TF32; the golden predictions were computed on the CPU.
    tf.config.set_visible_devices([], "GPU")
    golden = np.load(golden_path, allow_pickle=False)
    ends = np.cumsum(golden["lengths"])
    data = golden["images"].tobytes()
    images = [data[end - length : end] for end, length in zip(ends, golden["lengths"], strict=True)]
    model = tf.saved_model.load(model_path)
    differences, known_differences = [], [0.0]
    known = golden["known"]
    # One at a time, because several large images may not fit in memory.
    for row, (image, pixels, expected) in enumerate(
        zip(images, golden["pixels"], golden["probabilities"], strict=True)
    ):
        outputs = [
            model.signatures["serving_default"](image_bytes=tf.constant([image])),
            model.signatures["pixels"](pixels=tf.constant(pixels[None])),
        ]
        differences += [np.abs(output["probabilities"].numpy()[0] - expected).max() for output in outputs]
        if len(known):
            known_differences += [abs(float(output["known"].numpy()[0] - known[row])) for output in outputs]
    if "trainer" in sys.modules:
        raise SystemExit("The check is not independent: the trainer package is loaded.")
    result = {"largest_difference": max(differences), "largest_known_difference": max(known_differences)}
    print(json.dumps({name: float(value) for name, value in result.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
