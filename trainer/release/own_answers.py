"""Stored predictions of a finished run for its held-out images, without copies of training images."""

from __future__ import annotations

import numpy as np

from trainer.evaluate.metrics import AnyPredictions
from trainer.evaluate.prediction_files import parse_predictions, storable
from trainer.report.case import copied_names
from trainer.runs.marker import HELD_OUT
from trainer.storage.store import Store, read_object


def own_answers(run: Store) -> tuple[AnyPredictions, int] | None:
    """Return the stored held-out predictions and the number of exact copies of training images left out.

    None if the run has no stored predictions. The predictions may be empty.
    """
    found = run.read("predictions.csv")
    if found is None:
        return None
    answers = parse_predictions(found.data.decode("utf-8", "replace"), run.at("predictions.csv"))
    by_split = {each.split: each for each in answers}
    held_out = next((by_split[split] for split in HELD_OUT if split in by_split), None)
    if held_out is None:
        return None
    dataset = read_object(run, "dataset.json")
    copies = {storable(name) for name in copied_names(dataset, held_out.split)}
    kept = np.flatnonzero([name not in copies for name in held_out.names])
    return held_out.select(kept), len(held_out.names) - len(kept)
