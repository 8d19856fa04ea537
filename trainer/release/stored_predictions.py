"""Stored predictions of a finished run for its held-out images, without copies of training images."""

from __future__ import annotations

import numpy as np

from trainer.evaluate.metrics import AnyPredictions
from trainer.evaluate.prediction_files import parse_predictions, storable
from trainer.report.case import copied_names
from trainer.runs.marker import HELD_OUT
from trainer.storage.store import Store, read_object


def read_stored_predictions(run: Store) -> tuple[AnyPredictions, int] | None:
    """Return the stored held-out predictions and the number of exact copies of training images left out.

    None if the run has no stored predictions. The predictions may be empty.
    """
    content = run.read("predictions.csv")
    if content is None:
        return None
    predictions = parse_predictions(content.data.decode("utf-8", "replace"), run.at("predictions.csv"))
    by_split = {part.split: part for part in predictions}
    held_out = next((by_split[split] for split in HELD_OUT if split in by_split), None)
    if held_out is None:
        return None
    dataset = read_object(run, "dataset.json")
    copies = {storable(name) for name in copied_names(dataset, held_out.split)}
    originals = np.flatnonzero([name not in copies for name in held_out.names])
    return held_out.select(originals), len(held_out.names) - len(originals)
