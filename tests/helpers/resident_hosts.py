"""One of two processes that train with and without the images in device memory; prints the results.

The model has a whitening layer, which both processes fit to the images of both, and alternating flips per
image.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from helpers.small_training import SMALL, dark_and_light, do_train, untimed
from trainer.data.sampler import steps_per_epoch
from trainer.distributed import join_process_group, read_process_info
from trainer.distributed.devices import find_cluster
from trainer.model.airbench import WhiteningConv2D
from trainer.spec import load_spec
from trainer.training import build_learner
from trainer.training.learner import whiten_first_layer
from trainer.training.phase_work import fits_in_device_cache

SETTINGS = [
    *SMALL,
    "train.epochs=2",
    "train.xla=false",
    "model={family: airbench, filters: [8], dropout: 0.3}",
    "augment={flip: alternating, mixup: 0.5}",
    "optimizer={name: muon, unit_kernels: true, learning_rate: 0.1, rest_rate: 0.01}",
]


def main() -> None:
    """Train twice; the output folder is the only argument."""
    peers = join_process_group(read_process_info(os.environ, ""), {}, 60.0, print)
    cluster = find_cluster(devices="cpu", group=peers)
    like_a_gpu = replace(cluster, device_kind="GPU", memory_bytes=1 << 20)
    dataset = dark_and_light()
    spec = load_spec(settings=SETTINGS)
    assert fits_in_device_cache(dataset.train, like_a_gpu)
    found = []
    for name, each in {"host": cluster, "device": like_a_gpu}.items():
        steps = steps_per_epoch(len(dataset.train.labels), spec.train.global_batch_size)
        learner = build_learner(spec, 2, steps, each)
        whiten_first_layer(learner, dataset.train, each)
        fitted = next(layer for layer in learner.model.layers if isinstance(layer, WhiteningConv2D))
        kernel = fitted.kernel.numpy().tolist()
        _, result = do_train(spec, dataset, Path(sys.argv[1]) / name, learner=learner, cluster=each)
        found.append({"history": untimed(result.history), "kernel": kernel})
    print(json.dumps(found))
    peers.shutdown()


if __name__ == "__main__":
    main()
