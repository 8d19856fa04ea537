"""One of two processes that train with their images on the devices, and without; prints how it went."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from small_training import SMALL, dark_and_light, do_train, untimed

from trainer.cluster import find_cluster
from trainer.data.batches import steps_per_epoch
from trainer.hosts import meet, read_place
from trainer.spec import load_spec
from trainer.train import build_learner
from trainer.train.resident import fits


def main() -> None:
    """Train twice; the folder is the only argument."""
    peers = meet(read_place(os.environ, ""), "same", 60.0, print)
    cluster = find_cluster(devices="cpu", peers=peers)
    like_a_gpu = replace(cluster, device_kind="GPU", memory_bytes=1 << 20)
    dataset = dark_and_light()
    spec = load_spec(settings=[*SMALL, "train.epochs=2", "train.xla=false", "augment.mixup=0.5"])
    assert fits(dataset.train, like_a_gpu)
    found = []
    for name, each in {"host": cluster, "device": like_a_gpu}.items():
        steps = steps_per_epoch(len(dataset.train.labels), spec.train.global_batch_size)
        learner = build_learner(spec, 2, steps, each)
        _, result = do_train(spec, dataset, Path(sys.argv[1]) / name, learner=learner, cluster=each)
        found.append(untimed(result.history))
    print(json.dumps(found))
    peers.leave()


if __name__ == "__main__":
    main()
