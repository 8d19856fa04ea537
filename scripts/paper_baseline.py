"""Baseline: the paper's own code, its six steps with ImageDataGenerator and `fit`.

Trains the paper's network on the unpacked cats-and-dogs folder and prints its accuracy. Used by
`bench.py paper` only.

    python scripts/paper_baseline.py FOLDER [--epochs 15]
"""

from __future__ import annotations

import argparse

import keras
from keras import layers
from keras.src.legacy.preprocessing.image import ImageDataGenerator


def network() -> keras.Model:
    """Return the paper's network: four convolutions with max pooling, and one sigmoid unit."""
    model = keras.Sequential([keras.Input((150, 150, 3))])
    for filters in (16, 32, 64, 1024):
        model.add(layers.Conv2D(filters, (3, 3), activation="relu"))
        model.add(layers.MaxPooling2D(2, 2))
    model.add(layers.Flatten())
    model.add(layers.Dense(1, activation="sigmoid"))
    model.compile(
        loss="binary_crossentropy",
        optimizer=keras.optimizers.RMSprop(learning_rate=0.001),
        metrics=["accuracy"],
    )
    return model


def main() -> None:
    """Train as in the paper: 100 steps of 20 images per epoch, then 50 validation steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--epochs", type=int, default=15)
    arguments = parser.parse_args()
    images = ImageDataGenerator(rescale=1.0 / 255)
    flows = {
        split: images.flow_from_directory(
            f"{arguments.folder}/{split}", target_size=(150, 150), batch_size=20, class_mode="binary"
        )
        for split in ("train", "validation")
    }
    network().fit(flows["train"], epochs=arguments.epochs, validation_data=flows["validation"], verbose=2)


if __name__ == "__main__":
    main()
