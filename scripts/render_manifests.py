"""Manifests of k8s/, rendered by `trainer submit gke --dry-run` for common jobs.

    python scripts/render_manifests.py          writes them
    python scripts/render_manifests.py --check  exits with 1 if one of them is out of date

IMAGE and BUCKET are placeholders; docs/gke.md shows how to replace them.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "k8s"
NAMESPACE = "namespace.yaml"
"""Written by hand; the other manifests are rendered."""
_WHERE = "--image IMAGE/trainer:{variant} --output gs://BUCKET/runs"
MANIFESTS = {
    "job-one-gpu.yaml": "--recipe demo --run-name one-gpu --accelerator nvidia-l4:1",
    "job-gpus-of-one-host.yaml": "--recipe demo --run-name gpus-of-one-host --accelerator nvidia-l4:8",
    "job-hosts-spot.yaml": "--recipe demo --run-name hosts-spot --accelerator nvidia-l4:1 --workers 4 --spot",
    "job-tpu.yaml": "--recipe cats-vs-dogs --set train.global_batch_size=16 --run-name tpu "
    "--accelerator tpu-v5e:2x4",
    "cronjob.yaml": "--recipe demo --run-name weekly --accelerator nvidia-l4:1 --spot "
    "--schedule '0 3 * * 1' --time-zone America/Sao_Paulo",
    "job-any-cluster.yaml": "--recipe demo --run-name any-cluster --accelerator nvidia-l4:1 --no-gke-labels",
    "job-cpu.yaml": "--recipe demo --run-name cpu --accelerator cpu",
}


def render(name: str) -> str:
    """Render one manifest, with its command in the first line."""
    options = MANIFESTS[name]
    variant = next((name for name in ("tpu", "cpu") if f"--accelerator {name}" in options), "gpu")
    command = f"trainer submit gke {options} {_WHERE.format(variant=variant)} --dry-run"
    arguments = shlex.split(command)[1:]
    process = subprocess.run(
        [sys.executable, "-m", "trainer.cli", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return f"# {command}\n{process.stdout}"


def main() -> None:
    """Write all manifests, or compare them."""
    outdated = []
    for name in MANIFESTS:
        path, text = FOLDER / name, render(name)
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            outdated.append(name)
    if outdated:
        raise SystemExit(f"Out of date: {', '.join(outdated)}. Run python scripts/render_manifests.py.")


if __name__ == "__main__":
    main()
