"""What a finished run answered to its held-out images, but for copies of its training images.

In: the store of the run. Out: `Predictions`, and how many images were left out of them.
"""

from __future__ import annotations

import numpy as np

from trainer.marker import HELD_OUT
from trainer.metrics import AnyPredictions
from trainer.prediction_files import parse_predictions, storable
from trainer.report.case import copied_names
from trainer.storage.objects import read_object
from trainer.storage.store import Store


def own_answers(run: Store) -> tuple[AnyPredictions, int] | None:
    """Return the run's held-out answers without exact copies of training images, and how many those were.

    None if the run left no answers. There may be no image left.
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
