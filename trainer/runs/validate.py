"""Preconditions of a run, checked before anything is written.

A UsageError names the conflict and the remedy: a folder inside another run, files that are not a run,
another spec.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from trainer.errors import UsageError
from trainer.runs.files import STARTS
from trainer.runs.publish import MANIFEST, POINTER, RETIRED, is_finished
from trainer.spec import RunSpec, parse_spec, spec_changes
from trainer.storage import open_store
from trainer.storage.folder import FolderStore
from trainer.storage.store import GS, Store, is_bucket, split_uri

SPEC = "spec.yaml"
_RENAME = "choose another --run-name"
_RENAME_OR_RESTART = "choose another --run-name, or restart the run with --fresh"


def require_location(output: Store, name: str) -> None:
    """Raise UsageError if the output is inside another run, or a file has the name of the run or pointer."""
    if isinstance(output, FolderStore) and (output.root / name).is_file():
        raise UsageError(
            "The run folder is a file.", "Choose another --output or --run-name.", received=output.at(name)
        )
    require_outside_runs(output, "The output")
    _require_pointer(output)


def require_outside_runs(folder: Store, subject: str) -> None:
    """Raise UsageError for a folder inside a run, whose files must not change."""
    for parent in _with_parents(folder):
        if parent.find(STARTS) is not None:
            raise UsageError(
                f"{subject} is inside a run, whose files must not change.",
                "Choose a folder outside the run.",
                received=f"{folder.uri}, inside the run {parent.uri}",
            )


def require_not_retired(run: Store) -> None:
    """Raise UsageError for a run that was withdrawn because publish.keep_runs keeps newer ones."""
    if run.find(RETIRED) is not None and not is_finished(run):
        raise UsageError(
            "The run was finished and then deleted because it exceeded publish.keep_runs.",
            "Choose another --run-name.",
            received=run.uri,
        )


def require_not_withdrawn(run: Store) -> None:
    """Raise UsageError for a withdrawn run, so that it is neither read nor reported as damaged."""
    if run.find(RETIRED) is None or is_finished(run):
        return
    if run.find(MANIFEST) is None:
        raise UsageError(
            "The run exceeded publish.keep_runs, and its files are being deleted.",
            "Use a newer run.",
            received=run.uri,
        )
    raise UsageError(
        "The run exceeded publish.keep_runs, and its files will be deleted.",
        "Run `trainer promote RUN --force` to restore it.",
        received=run.uri,
    )


def require_run(run: Store, name: str) -> None:
    """Raise UsageError for a folder that no start has written, such as a user's files next to a spec.yaml."""
    names = {entry.name for entry in run.entries()}
    if names and STARTS not in names and {SPEC, "environment.json"} <= names and _is_settled(run, name):
        raise UsageError(
            f"{STARTS}, the log of the starts of this run, is missing.",
            f"Restore it (an empty file is enough), or {_RENAME}.",
            received=run.at(STARTS),
        )
    if names and STARTS not in names and not (names == {SPEC} and _is_settled(run, name)):
        raise UsageError(
            "The folder contains files that do not belong to a run.",
            "Choose another --output or --run-name.",
            received=run.uri,
        )


def require_same_spec(run: Store, name: str, spec: RunSpec, finished: bool = False) -> None:
    """Raise UsageError if the run has another spec, or its spec is missing.

    Unless the run is `finished`, data.source may differ: the contents of the data are compared later.
    """
    remedy = _RENAME if finished else _RENAME_OR_RESTART
    before = _written_spec(run, remedy)
    if not finished:
        data = before.data.model_copy(update={"source": spec.data.source})
        before = before.model_copy(update={"data": data})
    changes = spec_changes(before, spec)
    if changes:
        raise UsageError(
            f"The run {name} exists with another spec.",
            f"{remedy[:1].upper()}{remedy[1:]}.",
            received="; ".join(changes),
        )


def _written_spec(run: Store, remedy: str) -> RunSpec:
    written = run.read(SPEC)
    if written is None or not written.data.strip():
        state = "missing" if written is None else "empty"
        raise UsageError(
            f"{SPEC} of the run is {state}, so its settings are unknown.",
            f"Restore it, or {remedy}.",
            received=run.at(SPEC),
        )
    return _parse(written.data, run)


def _is_settled(run: Store, name: str) -> bool:
    """Return whether a start wrote the spec, even if it was killed before it wrote another file."""
    written = run.read(SPEC)
    try:
        return written is not None and _parse(written.data, run).run_name == name
    except UsageError:
        return False


def _parse(written: bytes, run: Store) -> RunSpec:
    return parse_spec(written.decode("utf-8", "replace"), run.at(SPEC))


def _require_pointer(output: Store) -> None:
    """Raise UsageError if something other than a pointer has the pointer's name and would be overwritten."""
    path = output.root / POINTER if isinstance(output, FolderStore) else None
    # A folder, or a special file whose read would never end.
    is_other = path is not None and path.exists() and not path.is_file()
    content = None if is_other else output.read(POINTER)
    if is_other or (content is not None and b"\n" in content.data.strip()):
        raise UsageError(
            f"{POINTER} is the name of the pointer to the newest run, but here it is another file or folder.",
            "Rename it, or choose another --output.",
            received=output.at(POINTER),
        )


def _with_parents(output: Store) -> Iterator[Store]:
    """Yield the output and all its parent folders."""
    if isinstance(output, FolderStore):
        root = output.root.resolve()
        yield from map(FolderStore, (root, *root.parents))
    elif is_bucket(output.uri):
        bucket, prefix = split_uri(output.uri)
        path = PurePosixPath(prefix)
        yield from (open_store(f"{GS}{bucket}/{parent}") for parent in (path, *path.parents) if parent.name)
        yield open_store(f"{GS}{bucket}")
