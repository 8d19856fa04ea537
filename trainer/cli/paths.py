"""Local paths for the paths and gs:// URIs of the command line.

Objects in a bucket are downloaded into the cache and verified. `.../latest` resolves to the run that the
pointer names.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from trainer.data.progress import Progress
from trainer.errors import UsageError
from trainer.runs import require_not_withdrawn
from trainer.runs.files import STARTS
from trainer.runs.publish import (
    MANIFEST,
    MODEL,
    find_run,
    parent_of,
    published_files,
    require_published_model,
)
from trainer.sanitize import shown_address
from trainer.spec import PretrainedSpec, RunSpec
from trainer.spec.networks import DEFAULT_WEIGHTS, NO_WEIGHTS
from trainer.spec.schema import RUN_NAME
from trainer.storage import open_store
from trainer.storage.store import Store, is_bucket, require_two_slashes, split_uri, without_scheme

_MOST_BYTES = 1 << 40


def absolute_source(source: str, example: str = "https://host/images.zip") -> str:
    """Return the data source with a local path made absolute; URLs and embedded data are unchanged.

    `example` is a URL for the message of the UsageError that a URL with a single slash raises.
    """
    if "://" in source or source.startswith("embedded:"):
        return source
    if not os.path.exists(source):
        require_two_slashes(source, example)
    try:
        return os.path.abspath(os.path.expanduser(source))
    except FileNotFoundError:
        raise UsageError(
            "The current folder does not exist any more.",
            "Change to another folder.",
            received=shown_address(source),
        ) from None


def with_absolute_test_data(spec: RunSpec) -> RunSpec:
    """Return the spec with a local path in publish.test_data made absolute."""
    test_data = spec.publish.test_data
    if test_data is None:
        return spec
    publish = spec.publish.model_copy(update={"test_data": absolute_source(test_data)})
    return spec.model_copy(update={"publish": publish})


def with_absolute_weights(spec: RunSpec) -> RunSpec:
    """Return the spec with a local path in model.weights made absolute."""
    if not isinstance(spec.model, PretrainedSpec) or spec.model.weights in (DEFAULT_WEIGHTS, NO_WEIGHTS):
        return spec
    weights = absolute_source(spec.model.weights, "https://host/model.weights.h5")
    return spec.model_copy(update={"model": spec.model.model_copy(update={"weights": weights})})


def require_apart(source: str, output: str) -> None:
    """Raise UsageError if `output` is inside the image folder `source`, where it would be a class."""
    if is_bucket(source) and is_bucket(output):
        images, runs = (Path("/", *split_uri(uri)) for uri in (source, output))
    elif is_bucket(source) or is_bucket(output) or not os.path.isdir(source):
        return
    else:
        images, runs = Path(source).resolve(), Path(without_scheme(output)).expanduser().resolve()
    if images in (runs, *runs.parents):
        raise UsageError(
            "The output folder is inside the folder of images, where its runs would be read as a class.",
            "Choose another --output, such as ../runs.",
            received=f"{shown_address(output)} in {shown_address(source)}",
        )


def require_inputs(spec: RunSpec) -> None:
    """Raise UsageError or DataError if the data or the images of publish.test_data are missing locally."""
    from trainer.data.fetch import require_source  # slow to import

    require_source(spec.data.source)
    path = spec.publish.test_data
    if spec.publish.release and path is not None and os.path.isabs(path) and not os.path.exists(path):
        raise UsageError(
            "The test images for the release decision do not exist.",
            "Check the path in publish.test_data.",
            received=path,
        )


def local_path(uri: str, cache_dir: Path, progress: Progress) -> Path:
    """Return the local path of the file or folder `uri`. Raises the errors of `fetch_bucket`."""
    from trainer.data.bucket import fetch_bucket  # slow to import

    return fetch_bucket(uri, cache_dir, _MOST_BYTES, progress) if is_bucket(uri) else Path(uri)


def local_model(uri: str, cache_dir: Path, progress: Progress) -> Path:
    """Return the local path of the model of the run `uri`, or of the model `uri`.

    Raises DataError if its files are not those that the run published, UsageError for an unfinished run.
    """
    store = find_run(uri)
    run = _run_of(store)
    require_not_withdrawn(run)
    if published_files(run) is not None:
        model = run.below(MODEL).uri
        folder = local_path(model, cache_dir, progress)
        require_published_model(run, folder)
        return folder
    _require_no_run(run)
    if is_bucket(uri) and not store.find("saved_model.pb"):
        raise UsageError(
            "There is no model.", "Use the URI of a finished run or of its model/ folder.", received=store.uri
        )
    return local_path(store.uri, cache_dir, progress)


def require_unmoved(spec_uri: str, spec: RunSpec) -> None:
    """Raise UsageError for the spec of a moved run, which would start over at its previous location."""
    parent, _ = parent_of(spec_uri)
    here = open_store(parent)
    if spec.run_name is None or here.find(STARTS) is None:
        return
    expected = open_store(spec.output).below(spec.run_name)
    if _is_same_path(here.uri, expected.uri):
        return
    output, name = parent_of(here.uri if is_bucket(here.uri) else os.path.abspath(here.uri))
    raise UsageError(
        f"The run of this spec was moved or copied from {expected.uri}.",
        f"To resume it here, add --output {shlex.quote(output)} --run-name {shlex.quote(name)}; to start "
        "another run, set --run-name to another name.",
        received=shown_address(spec_uri),
    )


def _is_same_path(one: str, other: str) -> bool:
    if is_bucket(one) or is_bucket(other):
        return one == other
    return Path(one).resolve() == Path(other).resolve()


def _run_of(store: Store) -> Store:
    """Return the run at `store`, or the run whose model/ folder it is; symbolic links are resolved."""
    parent, name = parent_of(store.uri if is_bucket(store.uri) else os.path.realpath(store.uri))
    return open_store(parent) if name == MODEL else store


def _require_no_run(run: Store) -> None:
    """Raise UsageError for an unfinished run, whether in progress or abandoned."""
    # Each start writes a row first; a spec beside a model does not imply a run. A manifest without a marker
    # belongs to a run that is not yet published or was changed.
    if run.find(STARTS) or run.find(MANIFEST):
        raise UsageError(
            "The run is not finished, so its model is missing or may be incomplete.",
            f"Finish the run with: trainer train {run.at('spec.yaml')}",
            received=run.uri,
        )


def output_of(uri: str) -> tuple[Store, str]:
    """Return the store of the output folder that contains the run at `uri`, and the name of the run."""
    run = find_run(uri)
    # Resolve links: the output is the folder that contains the run itself.
    parent, name = parent_of(run.uri if is_bucket(run.uri) else os.path.realpath(run.uri))
    if not re.fullmatch(RUN_NAME, name):
        raise UsageError(
            "The folder does not have the name of a run: letters, digits, dots, hyphens and underscores, "
            "starting with a letter or digit.",
            "Rename it.",
            received=f"{name!r} in {parent}",
        )
    return open_store(parent), name


def program() -> str:
    """Return the shell command of this program: its name if it is on PATH, or else its path."""
    path = Path(sys.argv[0])
    is_on_path = shutil.which("trainer") is not None or path.name != "trainer"
    return "trainer" if is_on_path else shlex.quote(str(path))
