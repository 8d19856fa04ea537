"""Published backbone weights for an image build, verified, in the folder that the Dockerfile copies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from trainer.data.progress import Progress
from trainer.data.published import LITE0_NAME, PUBLISHED
from trainer.data.weights import find_published
from trainer.errors import UsageError

FOLDER = Path("docker") / "weights"
_README = "README.md"


def stage_weights(root: Path, names: Sequence[str], cache_dir: Path, progress: Progress) -> list[Path]:
    """Copy the published weights of `names` to the build folder below `root`, remove others; return them.

    Raises UsageError for an unknown name, and the errors of `find_published`; then nothing has changed.
    """
    unknown = [name for name in names if name != LITE0_NAME and name not in PUBLISHED]
    if unknown:
        raise UsageError(
            f"Weights are published for {', '.join((LITE0_NAME, *PUBLISHED))}.", received=unknown[0]
        )
    # Every image has the weights that the package contains.
    wanted = [name for name in names if name != LITE0_NAME]
    found = [find_published(name, PUBLISHED[name], cache_dir, progress).path for name in wanted]
    folder = root / FOLDER
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        if old.name not in (_README, *(path.name for path in found)):
            old.unlink()
    return [_copied(path, folder) for path in found]


def _copied(path: Path, folder: Path) -> Path:
    target, partial = folder / path.name, folder / f".{path.name}.partial"
    shutil.copyfile(path, partial)
    os.replace(partial, target)
    return target
