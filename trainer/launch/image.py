"""Image builds from the project's source, on any Docker engine.

An image is tagged with a digest of its content and, for a clean working tree, with the git commit. It is
pushed only if the commit determines its content.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from docker.errors import DockerException, NotFound
from docker.utils.build import exclude_paths

from trainer import __version__
from trainer.data.progress import Progress
from trainer.data.weights import LITE0_NAME, PUBLISHED, find_published
from trainer.errors import TemporaryError, TrainerError, UsageError
from trainer.launch.container import (
    SERVICE,
    Engine,
    EngineResponse,
    is_access_refused,
    translate_engine_errors,
)
from trainer.launch.plan import check_image_name
from trainer.launch.responses import read_response

DOCKERFILE = "docker/Dockerfile"
WEIGHTS_FOLDER = Path("docker") / "weights"
_README = "README.md"
_DIGITS = 12
_LAST_LINES = 12
_REVISION_LABEL = "org.opencontainers.image.revision"


@dataclass(frozen=True)
class ImageSource:
    """Source that an image is built from."""

    root: Path
    """Top folder of the project."""
    digest: str
    """Digest of all files in the image and of the build options, 12 hex digits."""
    commit: str | None
    """Git commit, 12 hex digits; None outside a git repository."""
    is_dirty: bool
    """Whether files differ from the commit."""

    @property
    def revision(self) -> str:
        """The commit, with '-dirty' if files differ from it; 'unknown' outside a git repository."""
        return "unknown" if self.commit is None else self.commit + ("-dirty" if self.is_dirty else "")


def find_source(start: Path, variant: str, base: str) -> ImageSource:
    """Return the source in `start` or the nearest parent. Raises UsageError if there is none."""
    root = find_root(start)
    commit = _git(root, "rev-parse", f"--short={_DIGITS}", "HEAD")
    status = _git(root, "status", "--porcelain")
    is_dirty = status is None or bool(status)  # without an answer from git the tree does not count as clean
    return ImageSource(root, _digest(root, f"{variant} {base}"), commit or None, is_dirty)


def find_root(start: Path) -> Path:
    """Return the project's top folder, `start` or its nearest parent. Raises UsageError if there is none."""
    for root in (start, *start.parents):
        if (root / DOCKERFILE).is_file():
            return root
    raise UsageError(
        f"Images are built from the source of this project: {DOCKERFILE} is not in this folder or a parent.",
        "Change to the folder of the project.",
        start,
    )


def tags_of(source: ImageSource, repository: str, variant: str) -> list[str]:
    """Return the tags of the image: by content, by commit if the tree is clean, and the variant alone.

    Raises UsageError for an invalid repository name.
    """
    check_image_name(f"{repository}:{variant}")
    versions = [source.digest, *([source.commit] if source.commit and not source.is_dirty else [])]
    return [f"{repository}:{variant}-{version}" for version in versions] + [f"{repository}:{variant}"]


def stage_weights(root: Path, names: Sequence[str], cache_dir: Path, progress: Progress) -> list[Path]:
    """Copy the published weights of `names` to the build context below `root`, remove others; return them.

    Raises UsageError for an unknown name, and the errors of `find_published`; then nothing has changed.
    """
    unknown = [name for name in names if name != LITE0_NAME and name not in PUBLISHED]
    if unknown:
        raise UsageError(
            "There are no published weights of this name.",
            f"Choose from {', '.join((LITE0_NAME, *PUBLISHED))}.",
            unknown[0],
        )
    # Every image has the weights that the package contains.
    paths = [
        find_published(name, PUBLISHED[name], cache_dir, progress).path
        for name in names
        if name != LITE0_NAME
    ]
    folder = root / WEIGHTS_FOLDER
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        if old.name not in (_README, *(path.name for path in paths)):
            old.unlink()
    return [_copy(path, folder) for path in paths]


def _copy(path: Path, folder: Path) -> Path:
    target, partial = folder / path.name, folder / f".{path.name}.partial"
    shutil.copyfile(path, partial)
    os.replace(partial, target)
    return target


class _ImageConfig(EngineResponse):
    labels: dict[str, str] | None = None


class _BuiltImage(EngineResponse):
    id: str
    config: _ImageConfig


def _inspect(client: Engine, tag: str) -> dict[str, Any]:
    """Return an image. Raises docker.errors.NotFound, UsageError, TemporaryError."""
    with translate_engine_errors():
        return read_response(_BuiltImage, client.inspect_image(tag), SERVICE)


def build_image(
    client: Engine,
    source: ImageSource,
    variant: str,
    base: str,
    tags: list[str],
    on_line: Callable[[str], None],
    network: str | None = None,
) -> str:
    """Build the image, apply all `tags` and return its ID; `on_line` is called with each line of output.

    Raises TrainerError with the last lines of the output if the build fails.
    """
    arguments = {
        "VARIANT": variant, "BASE_IMAGE": base, "VERSION": __version__, "REVISION": source.revision,
    }  # fmt: skip
    output: list[str] = []
    try:
        stream = client.build(
            path=str(source.root), dockerfile=DOCKERFILE, tag=tags[0], buildargs=arguments, rm=True,
            decode=True, network_mode=network,
        )  # fmt: skip
        for line in _lines(stream, output):
            on_line(line)
        for tag in tags[1:]:
            client.tag(tags[0], *tag.rsplit(":", 1))
        return str(_inspect(client, tags[0])["Id"])
    except (_StreamError, DockerException, requests.RequestException) as error:
        raise TrainerError(
            _failure("The image could not be built", output), received=_shorten(error)
        ) from None


def push_image(client: Engine, source: ImageSource, tags: list[str], on_line: Callable[[str], None]) -> None:
    """Push the image to its registry.

    Raises UsageError for a dirty working tree, an image that is not built, or refused credentials;
    TemporaryError if the push fails otherwise.
    """
    if source.is_dirty or source.commit is None:
        raise UsageError(
            "The working tree has uncommitted changes, so that no commit describes the content of the image.",
            "Commit the changes first.",
            f"{source.revision} in {source.root}",
        )
    image = _require_built(client, source, tags[0])
    for tag in tags:
        with translate_engine_errors():
            client.tag(image, *tag.rsplit(":", 1))  # a later build may have moved the tag
    for tag in tags:
        output: list[str] = []
        try:
            stream = client.push(*tag.rsplit(":", 1), stream=True, decode=True)
            for line in _lines(stream, output):
                on_line(line)
        except (_StreamError, DockerException, requests.RequestException) as error:
            kind = UsageError if is_access_refused(_shorten(error), tag) else TemporaryError
            raise kind(
                _failure(f"{tag} could not be pushed", output),
                "Check the name of the registry and that you are logged in to it, then try again.",
                _shorten(error),
            ) from None


def _require_built(client: Engine, source: ImageSource, tag: str) -> str:
    """Return the ID of the image of this source and commit. Raises UsageError if there is none."""
    try:
        image = _inspect(client, tag)
    except NotFound:
        raise UsageError(
            "The image of this source is not built.",
            "Build it with `trainer image build` and the same options.",
            f"no image {tag}",
        ) from None
    revision = (image["Config"].get("Labels") or {}).get(_REVISION_LABEL)
    if revision != source.revision:
        raise UsageError(
            "The image of this source was built from another commit, which its label names.",
            "Run `trainer image build` again; it takes seconds.",
            f"{tag} of {revision}, and {source.revision} here",
        )
    return str(image["Id"])


class _StreamError(Exception):
    """An error in the output of a build or a push."""


def _lines(stream: Iterator[Mapping[str, Any]], output: list[str]) -> Iterator[str]:
    """Yield the engine's output line by line, and append it to `output`. Raises _StreamError."""
    for event in stream:
        if "error" in event:
            raise _StreamError(str(event["error"]))
        text = str(event.get("stream") or event.get("status") or "")
        for line in filter(None, map(str.rstrip, text.splitlines())):
            output.append(line)
            yield line


def _failure(problem: str, output: list[str]) -> str:
    lines = "".join(f"  {line}\n" for line in output[-_LAST_LINES:])
    return f"{problem}. The last lines of the engine's output:\n{lines}" if lines else f"{problem}."


def _shorten(error: Exception) -> str:
    return str(error).strip()[:500]


def _digest(root: Path, options: str) -> str:
    """Return a digest of `options` and of the names and contents of the files in the build context."""
    patterns = [
        line.strip()
        for line in (root / ".dockerignore").read_text("utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    digest = hashlib.sha256(options.encode())
    for name in sorted(exclude_paths(str(root), patterns, dockerfile=DOCKERFILE)):
        path = root / name
        if path.is_file():
            digest.update(f"\0{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:_DIGITS]


def _git(root: Path, *arguments: str) -> str | None:
    """Return git's output, None if git is not installed, fails or times out."""
    try:
        process = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() if process.returncode == 0 else None
