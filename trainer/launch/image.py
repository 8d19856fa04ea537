"""Image builds from the project's source, on any Docker engine.

An image is tagged with a digest of its content and, for a clean working tree, with the git commit. It is
pushed only if the commit determines its content.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from docker import APIClient
from docker.errors import DockerException, NotFound
from docker.utils import kwargs_from_env
from docker.utils.build import exclude_paths

from trainer import __version__
from trainer.errors import TemporaryError, TrainerError, UsageError
from trainer.launch.engine_errors import is_access_refused
from trainer.launch.plan import check_image_name

Engine = Any
"""A docker.APIClient, which has only partial type annotations."""
DOCKERFILE = "docker/Dockerfile"
_DIGITS = 12
_LAST_LINES = 12
_REVISION_LABEL = "org.opencontainers.image.revision"


@dataclass(frozen=True)
class Source:
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


def find_source(start: Path, variant: str, base: str) -> Source:
    """Return the source in `start` or the nearest parent. Raises UsageError if there is none."""
    root = find_root(start)
    commit = _git(root, "rev-parse", f"--short={_DIGITS}", "HEAD")
    status = _git(root, "status", "--porcelain")
    is_dirty = status is None or bool(status)  # without an answer from git the tree does not count as clean
    return Source(root, _digest(root, f"{variant} {base}"), commit or None, is_dirty)


def find_root(start: Path) -> Path:
    """Return the project's top folder, `start` or its nearest parent. Raises UsageError if there is none."""
    for root in (start, *start.parents):
        if (root / DOCKERFILE).is_file():
            return root
    raise UsageError(
        f"An image is built from the project's source, and there is no {DOCKERFILE} here or above; change to "
        f"the project's folder.",
        received=start,
    )


def tags_of(source: Source, repository: str, variant: str) -> list[str]:
    """Return the tags of the image: by content, by commit if the tree is clean, and the variant alone.

    Raises UsageError for an invalid repository name.
    """
    check_image_name(f"{repository}:{variant}")
    names = [source.digest, *([source.commit] if source.commit and not source.is_dirty else [])]
    return [f"{repository}:{variant}-{name}" for name in names] + [f"{repository}:{variant}"]


def open_engine() -> Engine:
    """Return a client of the engine at DOCKER_HOST, else of the local engine. Raises UsageError."""
    try:
        client: Engine = APIClient(version="auto", **kwargs_from_env())
        client.ping()
    except (DockerException, OSError, ValueError) as error:
        raise UsageError(
            "No Docker engine answers; start Docker, or let DOCKER_HOST name one that you have the right to "
            "use.",
            received=f"{str(error)[:200]}",
        ) from None
    return client


def build_image(
    client: Engine,
    source: Source,
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
    said: list[str] = []
    try:
        stream = client.build(
            path=str(source.root), dockerfile=DOCKERFILE, tag=tags[0], buildargs=arguments, rm=True,
            decode=True, network_mode=network,
        )  # fmt: skip
        for line in _lines(stream, "The image could not be built", said):
            on_line(line)
        for tag in tags[1:]:
            client.tag(tags[0], *tag.rsplit(":", 1))
        return str(client.inspect_image(tags[0])["Id"])
    except (DockerException, requests.RequestException) as error:
        raise TrainerError(_failure("The image could not be built", said, str(error))) from None


def push_image(client: Engine, source: Source, tags: list[str], on_line: Callable[[str], None]) -> None:
    """Push the image to its registry.

    Raises UsageError for a dirty working tree, an image that is not built, or refused credentials;
    TemporaryError if the push fails otherwise.
    """
    if source.is_dirty or source.commit is None:
        raise UsageError(
            "Only what a commit says is pushed, so that everyone can see what an image holds; commit the "
            "changes first.",
            received=f"{source.revision} in {source.root}",
        )
    found = _built(client, source, tags[0])
    for tag in tags:
        client.tag(found, *tag.rsplit(":", 1))  # a later build may have moved the tag
    for tag in tags:
        said: list[str] = []
        try:
            stream = client.push(*tag.rsplit(":", 1), stream=True, decode=True)
            for line in _lines(stream, f"{tag} could not be pushed", said):
                on_line(line)
        except (TrainerError, DockerException, requests.RequestException) as error:
            last = str(error).rpartition("Received: ")[2]
            kind = UsageError if is_access_refused(last, tag) else TemporaryError
            raise kind(
                f"{error} Check the registry's name, that you are logged in to it, and try again."
            ) from None


def _built(client: Engine, source: Source, tag: str) -> str:
    """Return the ID of the image of this source and commit. Raises UsageError if there is none."""
    try:
        found = client.inspect_image(tag)
    except NotFound:
        raise UsageError(
            "This source isn't built yet; `trainer image build` with the same options does it.",
            received=f"no image {tag}",
        ) from None
    revision = (found["Config"].get("Labels") or {}).get(_REVISION_LABEL)
    if revision != source.revision:
        raise UsageError(
            "This source was built of another commit, which the image would tell; `trainer image build` "
            "takes seconds now.",
            received=f"{tag} of {revision}, and {source.revision} here",
        )
    return str(found["Id"])


def _lines(stream: Iterator[Mapping[str, Any]], what: str, said: list[str]) -> Iterator[str]:
    """Yield the engine's output line by line. Raises TrainerError for an error in the stream."""
    for each in stream:
        if "error" in each:
            raise TrainerError(_failure(what, said, str(each["error"])))
        text = str(each.get("stream") or each.get("status") or "")
        for line in filter(None, map(str.rstrip, text.splitlines())):
            said.append(line)
            yield line


def _failure(what: str, said: list[str], error: str) -> str:
    last = "".join(f"  {line}\n" for line in said[-_LAST_LINES:])
    return f"{what}; the engine's last words:\n{last}Received: {error.strip()[:500]}"


def _digest(root: Path, how: str) -> str:
    """Return a digest of `how` and of the names and contents of the files in the build context."""
    patterns = [
        line.strip()
        for line in (root / ".dockerignore").read_text("utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    found = hashlib.sha256(how.encode())
    for name in sorted(exclude_paths(str(root), patterns, dockerfile=DOCKERFILE)):
        path = root / name
        if path.is_file():
            found.update(f"\0{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:_DIGITS]


def _git(root: Path, *arguments: str) -> str | None:
    """Return git's output, None if git is not installed, fails or times out."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
