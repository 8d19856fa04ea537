"""Speed benchmarks, reported as ratios of paired measurements.

    python scripts/bench.py paper --data PETS    the whole paper run / the paper's own code
    python scripts/bench.py step --data PETS     training / the bare compiled step
    python scripts/bench.py extraction --data PETS    features of a backbone / the bare forward pass
    python scripts/bench.py finetuning --data PETS    training of its last stage / the bare step
    python scripts/bench.py cached --data PETS   a second training on cached features, in seconds
    python scripts/bench.py served --data PETS --batch 1    an answer with rejection / one without
    python scripts/bench.py memory               resident memory, data of ten times the cache
    python scripts/bench.py help                 `trainer --help`

PETS is cats_and_dogs_filtered.zip or the folder in it.

Timings on shared machines are noisy, so both sides are measured in pairs and the median of the ratios is the
result.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}


def main() -> None:
    """Run one benchmark and print its results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", choices=list(BENCHMARKS))
    parser.add_argument("--data", help="cats-and-dogs folder or archive")
    parser.add_argument(
        "--recipe", default="cats-vs-dogs", help="recipe that `paper` compares with the paper's own code"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        help="epochs of both sides, for a quick check; by default the recipe's, and the paper's 15",
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1, help="images per request of `served`")
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16", "auto"],
        help="precision of the trainer; by default the recipe's",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for the runs of `paper`; accuracy.py uses them with the same data and settings",
    )
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {date.today()}")
    BENCHMARKS[arguments.benchmark](arguments)


def bench_paper(arguments: argparse.Namespace) -> None:
    """Time whole processes: the trainer, with decoding, export and report, and the paper's own code.

    Both run with their defaults: the trainer enables oneDNN convolutions, TensorFlow alone only on CPUs with
    AVX-512.
    """
    folder, seeds = find_data_folder(arguments.data), itertools.count()
    with tempfile.TemporaryDirectory() as temporary:
        output = arguments.output or Path(temporary)

        def run_trainer() -> None:
            seed = next(seeds)
            name = f"{arguments.recipe}-seed-{seed}"
            if (output / name).exists():
                raise SystemExit(
                    f"The run {output / name} exists; a finished run cannot be timed. "
                    "Choose another --output."
                )
            run_quietly(
                "-m", "trainer.task", "--recipe", arguments.recipe, "--data", str(folder),
                "--output", str(output.absolute()), "--run-name", name, "--set", f"seed={seed}",
                *(["--set", f"train.precision={arguments.precision}"] if arguments.precision else []),
                *(["--set", f"train.epochs={arguments.epochs}"] if arguments.epochs else []),
            )  # fmt: skip

        def run_paper_code() -> None:
            run_quietly(str(HERE / "paper_baseline.py"), str(folder), "--epochs", str(arguments.epochs or 15))

        compare(
            "the whole run, s",
            "the paper's own code, s",
            timed(run_trainer),
            timed(run_paper_code),
            arguments.pairs,
        )


def bench_step(arguments: argparse.Namespace) -> None:
    """Compare images/s of training with the bare step on one batch in memory."""
    from trainer.cli.bootstrap import prepare_libraries

    prepare_libraries()
    import bench.step as benchmark

    trained, bare = benchmark.prepare(find_data_folder(arguments.data), arguments.precision or "float32")
    compare("training, images/s", "bare step, images/s", trained, bare, arguments.pairs)


def bench_extraction(arguments: argparse.Namespace) -> None:
    """Compare images/s of feature extraction with a compiled forward pass."""
    from trainer.cli.bootstrap import prepare_libraries

    prepare_libraries()
    import bench.pretrained as benchmark

    extraction, bare = benchmark.prepare_extraction(find_data_folder(arguments.data))
    compare("extraction, images/s", "forward pass, images/s", extraction, bare, arguments.pairs)


def bench_finetuning(arguments: argparse.Namespace) -> None:
    """Compare images/s of training the last stage with the bare step on one batch in memory."""
    from trainer.cli.bootstrap import prepare_libraries

    prepare_libraries()
    import bench.pretrained as benchmark

    folder = find_data_folder(arguments.data)
    trained, bare = benchmark.prepare_finetuning(folder, arguments.precision or "auto")
    compare("fine-tuning, images/s", "bare step, images/s", trained, bare, arguments.pairs)


def bench_cached(arguments: argparse.Namespace) -> None:
    """Print the seconds of a training with the recipe auto, and of a second one on cached features."""
    import bench.pretrained as benchmark

    first, second, whole = benchmark.cached_seconds(arguments.data)
    print(f"training {first:.1f} s; again with another seed {second:.1f} s, the second process {whole:.1f} s")


def bench_served(arguments: argparse.Namespace) -> None:
    """Compare milliseconds per image with rejection, without it, and without an error per image."""
    from trainer.cli.bootstrap import prepare_libraries

    prepare_libraries()
    import bench.served as benchmark

    served, without, bare = benchmark.prepare(find_data_folder(arguments.data), arguments.batch)
    compare("with rejection, ms/image", "without it, ms/image", served, without, arguments.pairs)
    compare("with rejection, ms/image", "bare, ms/image", served, bare, arguments.pairs)


def bench_memory(arguments: argparse.Namespace) -> None:
    """Print the peak resident memory of reading data of the size of the cache budget, and ten times that."""
    import bench.memory as benchmark

    for name, value in benchmark.peaks().items():
        print(f"{name:<44}{value:>8.0f} MiB")


def bench_help(arguments: argparse.Namespace) -> None:
    """Time `trainer --help` and an empty Python process."""
    compare(
        "trainer --help, s",
        "empty Python, s",
        timed(lambda: run_quietly("-m", "trainer.cli", "--help")),
        timed(lambda: run_quietly("-c", "")),
        max(9, arguments.pairs),
    )


def compare(
    name: str, other_name: str, measure: Callable[[], float], measure_other: Callable[[], float], pairs: int
) -> None:
    """Measure both alternately; print medians, ranges and the ratios of the pairs."""
    measurements = [(measure(), measure_other()) for _ in range(pairs)]
    ratios = [one / other for one, other in measurements]
    for label, values in (
        (name, [one for one, _ in measurements]),
        (other_name, [other for _, other in measurements]),
        ("ratio", ratios),
    ):
        print(
            f"{label:<28} median {statistics.median(values):8.3f}   "
            f"{min(values):8.3f} to {max(values):8.3f}   {len(values)} times"
        )


def timed(action: Callable[[], None]) -> Callable[[], float]:
    """Return a function that runs `action` and returns its duration in seconds."""

    def measure() -> float:
        started = time.perf_counter()
        action()
        return time.perf_counter() - started

    return measure


def run_quietly(*arguments: str) -> None:
    """Run Python with `arguments`; exit with its output if it fails."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=ENVIRONMENT,
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(
            f"{' '.join(arguments)} failed with exit code {done.returncode}:\n{done.stdout}{done.stderr}"
        )


def find_data_folder(data: str | None) -> Path:
    """Return the folder of `data` that contains train/ and validation/, unpacked if it is an archive."""
    from trainer.cli.environment import cache_folder
    from trainer.data.fetch import fetch_source
    from trainer.data.progress import SilentProgress

    if not data:
        raise SystemExit("This benchmark requires --data, the cats-and-dogs folder or archive.")
    root = fetch_source(data, None, cache_folder(), 1 << 40, SilentProgress())
    folders = [folder.parent for folder in sorted(root.resolve().rglob("train")) if folder.is_dir()]
    if not folders:
        raise SystemExit(f"{data} contains no folder train/. Pass the cats-and-dogs folder or archive.")
    return folders[0]


BENCHMARKS = {
    "paper": bench_paper,
    "step": bench_step,
    "extraction": bench_extraction,
    "finetuning": bench_finetuning,
    "cached": bench_cached,
    "served": bench_served,
    "memory": bench_memory,
    "help": bench_help,
}

if __name__ == "__main__":
    main()
