"""Pretrained weights that are built into an image."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from helpers.copied_project import copied_project

from trainer.data import weights
from trainer.data.progress import SilentProgress
from trainer.data.weights import Published
from trainer.errors import DataError, UsageError
from trainer.launch.image import WEIGHTS_FOLDER, find_source, stage_weights


def test_stage_weights_copies_requested_weights_and_removes_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, cache = copied_project(tmp_path / "project"), tmp_path / "cache"
    (cache / "weights").mkdir(parents=True)
    for name in ("one", "two"):
        (cache / "weights" / f"{name}.h5").write_bytes(name.encode())
        published = Published(
            f"https://host/{name}.h5", f"md5:{hashlib.md5(name.encode()).hexdigest()}", None
        )
        monkeypatch.setitem(weights.PUBLISHED, name, published)
    empty = find_source(project, "cpu", "base")
    (path,) = stage_weights(project, ["one", "efficientnet-lite0"], cache, SilentProgress())
    assert (path, path.read_bytes()) == (project / WEIGHTS_FOLDER / "one.h5", b"one")
    assert find_source(project, "cpu", "base").digest != empty.digest  # now part of the build context
    assert not find_source(project, "cpu", "base").is_dirty
    stage_weights(project, ["two"], cache, SilentProgress())
    assert {entry.name for entry in (project / WEIGHTS_FOLDER).iterdir()} == {"README.md", "two.h5"}
    (cache / "weights" / "one.h5").write_bytes(b"others")
    with pytest.raises(DataError, match="not the published file of weights"):
        stage_weights(project, ["one"], cache, SilentProgress())
    with pytest.raises(
        UsageError, match=r"no published weights of this name\. Choose from efficientnet-lite0, "
    ):
        stage_weights(project, ["three"], cache, SilentProgress())
    assert {entry.name for entry in (project / WEIGHTS_FOLDER).iterdir()} == {"README.md", "two.h5"}
    stage_weights(project, [], cache, SilentProgress())
    assert find_source(project, "cpu", "base").digest == empty.digest
