"""Cost model of a train step on many accelerators, validated with two local processes.

A step is the computation of a replica's share, followed by one all-reduce of all gradients. The two do not
overlap: training reduces once, when all gradients are computed. In a ring all-reduce each of n replicas sends
and receives 2 (n - 1) messages of 1/n of the bytes, which is the minimum for any all-reduce (Patarasuk and
Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations", J. Parallel Distrib.
Comput. 69(2), theorem 1 and section 3):

    seconds = 2 (n - 1) (latency + bytes / (n bandwidth))

The computation time is that of the slowest replica in each step. The efficiency of n replicas, each with a
batch of its own size, is computation / (computation + all-reduce).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import numpy as np

from scale.overhead import Measured, measure

MAX_ERROR = 0.1
"""Maximum relative error of the predicted step time of two local processes."""
COUNTS = (8, 64, 512)
UTILISATION = 0.3
"""Assumed, not measured: share of an accelerator's peak FLOP/s that small convolutions reach."""
PEAKS = {"L4": 121e12, "A100": 312e12, "H100 SXM": 989e12}
"""FLOP/s in bfloat16 without sparsity, from NVIDIA's data sheets (L4: half of the 242 with sparsity)."""
BATCHES = (20, 256)
"""Images per accelerator: the paper's whole batch, and a typical batch."""


@dataclass(frozen=True)
class Link:
    """Latency and bandwidth between two neighbours of the ring."""

    latency_seconds: float
    bytes_per_second: float

    def sum_seconds(self, size: int, count: int) -> float:
        """Return the seconds of a ring all-reduce of `size` bytes over `count` replicas."""
        return 2 * (count - 1) * (self.latency_seconds + size / (count * self.bytes_per_second))


LINKS = {
    "10 GB/s, 20 us": Link(20e-6, 10e9),
    "100 GB/s, 5 us": Link(5e-6, 100e9),
}
"""Assumed: a 100 Gbit/s network through kernel and NIC, and an NVLink or InfiniBand class link."""


def main(times: int, seed: int) -> list[str]:
    """Validate the model with `times` pairs of turns and local all-reduces, then print predictions."""
    measured = measure(times)
    link = fit(measured.link)
    step = measured.slowest + link.sum_seconds(measured.gradient_bytes, 2)
    error = step / measured.whole - 1.0
    alone = link.sum_seconds(measured.gradient_bytes, 2)
    print(
        f"measured here, 2 processes, loopback: latency {1e6 * link.latency_seconds:.0f} us, bandwidth "
        f"{link.bytes_per_second / 1e9:.2f} GB/s (a ring of two, fitted to all-reduces of "
        f"{min(measured.link)} to {max(measured.link):,} bytes)"
    )
    print(
        f"predicted: the all-reduce of {measured.gradient_bytes / 1e6:.2f} MB {1e3 * alone:.1f} ms (measured "
        f"alone {1e3 * measured.alone:.1f}), the step {1e3 * step:.1f} ms (measured "
        f"{1e3 * measured.whole:.1f}, {error:+.1%}; limit {MAX_ERROR:.0%}), of which "
        f"{1e3 * measured.slowest:.1f} is the slower process's computation; "
        f"efficiency {measured.bare / step:.3f}"
    )
    _explain_throughput(measured, step)
    _predict(measured.gradient_bytes)
    return [] if abs(error) <= MAX_ERROR else [f"the predicted step is {error:+.1%} off the measured one"]


def fit(seconds: dict[int, float]) -> Link:
    """Fit a link to the measured all-reduces of two replicas, by least squares of the relative errors."""
    sizes, durations = np.array(list(seconds)), np.array(list(seconds.values()))
    # For two replicas: 2 latency + bytes / bandwidth.
    terms = np.stack([np.full(len(sizes), 2.0), sizes], axis=1) / durations[:, None]
    (latency, per_byte), *_ = np.linalg.lstsq(terms, np.ones(len(sizes)), rcond=None)
    return Link(max(0.0, float(latency)), 1.0 / max(float(per_byte), 1e-15))


def _explain_throughput(measured: Measured, step: float) -> None:
    halves = median(measured.one) / measured.bare
    print(
        f"two processes beside one with two threads: {measured.ratio:.3f} of its throughput; "
        f"{measured.bare / step:.3f} by all-reduce and waiting, times {halves:.3f} by half a batch on one "
        f"core ({1e3 * measured.bare:.1f} ms) against a whole batch on two "
        f"({1e3 * median(measured.one):.1f} ms)"
    )


def _predict(gradient_bytes: int) -> None:
    flops = step_flops_of_an_image()
    print(
        f"predicted for the paper's network, {flops / 1e9:.2f} GFLOP an image and step, "
        f"{gradient_bytes / 1e6:.2f} MB of gradients, one ring over all. ASSUMED, not measured: "
        f"{UTILISATION:.0%} of the peak in bfloat16, the links, no stragglers, data always ready, nothing "
        f"overlapped; the global batch grows with the number of accelerators."
    )
    counts = "".join(f"{n:>8}" for n in COUNTS)
    print(f"{'accelerator':<12}{'batch each':>11}  {'step':>9}  {'link':<16}{counts}")
    for name, peak in PEAKS.items():
        for batch in BATCHES:
            compute = batch * flops / (UTILISATION * peak)
            for name_of_link, link in LINKS.items():
                shares = [compute / (compute + link.sum_seconds(gradient_bytes, n)) for n in COUNTS]
                print(
                    f"{name:<12}{batch:>11}  {1e3 * compute:>6.2f} ms  {name_of_link:<16}"
                    + "".join(f"{share:>8.3f}" for share in shares)
                )


def step_flops_of_an_image() -> float:
    """Return the floating-point operations per image of a train step: forward, and twice that backward.

    A convolution or dense layer has 2 operations per weight of its kernel and position of its output.
    """
    from trainer.model import build_model
    from trainer.spec import load_spec

    spec = load_spec(recipe="cats-vs-dogs")
    model = build_model(spec.model, 2, spec.data.image_size)
    kernels = [layer for layer in model.layers if hasattr(layer, "kernel")]
    return 3.0 * sum(
        2.0 * np.prod(layer.kernel.shape) * np.prod(layer.output.shape[1:-1] or (1,)) for layer in kernels
    )
