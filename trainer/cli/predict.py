"""Implementation of `trainer predict`, `trainer evaluate` and `trainer verify`.

Results are printed to standard output, predictions and metrics as a table or JSON, or written to a file. Each
image that cannot be used is one line on standard error.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from trainer.data.items import Rejection
from trainer.errors import DataError, TemporaryError, TrainerError, UsageError
from trainer.sanitize import printable, printable_lines, shown_address, spreadsheet_cell, without_secrets

if TYPE_CHECKING:
    from trainer.cli.console import Console
    from trainer.data.dataset import Split
    from trainer.data.progress import Progress
    from trainer.evaluate.metrics import AnyPredictions
    from trainer.evaluate.predict import FileAnswer
    from trainer.export import LoadedModel
    from trainer.storage.store import Store

_LOG_SECONDS = 30.0
_MOST_BYTES = 1 << 30
_NAME_BYTES = 60


@dataclass(frozen=True)
class PredictOptions:
    """Options of `trainer predict`."""

    as_json: bool = False
    trust: bool = False
    top: int | None = None
    """Number of the most probable classes to show."""
    threshold: float | None = None
    """Minimum probability of a prediction; None: the best class, or the thresholds of the model."""
    csv: str | None = None
    """File or gs:// URI that the predictions are written to instead of being printed."""
    explain: str | None = None
    """Folder or gs:// URI for a picture of each image with the occlusion map of its prediction."""


class Answer(NamedTuple):
    """Prediction for one image."""

    name: str
    labels: dict[str, float]
    """Predicted labels with their probabilities, the most probable first."""
    probabilities: dict[str, float]
    """Of all classes."""
    known: float | None = None
    """p-value of the image among those that are like the training images; None without a detector."""
    accepted: bool | None = None
    """Whether the model accepts the image; None without a detector."""


def predict_command(
    model_uri: str, images: Sequence[str], cache_dir: Path, options: PredictOptions | None = None
) -> None:
    """Print the prediction for each image; raise DataError at the end if one cannot be used."""
    from trainer.cli.console import Console
    from trainer.cli.paths import local_model
    from trainer.data.checks import warnings_of_formats
    from trainer.data.readers.read_result import describe_links
    from trainer.evaluate.predict import classify_files, find_pictures
    from trainer.export import load_model

    options = options or PredictOptions()
    target = _csv_file(options)
    maps = None if options.explain is None else _MapFolder(options.explain)
    unusable: list[Rejection] = []
    failures: list[TrainerError] = []
    with Console(_LOG_SECONDS, stderr=True) as console:
        sources = _local_sources(images, cache_dir, console, failures)
        paths, left_out = find_pictures([source for source, _ in sources])
        model = load_model(local_model(model_uri, cache_dir, console), options.trust)
    names = {path: _shown_name(path, sources) for path in paths}
    converted: Counter[str] = Counter()

    def answers() -> Iterator[Answer]:
        results = classify_files(model, paths, lambda name: converted.update([name]))
        for path, result in results if maps is None else maps.explained(results, model, names):
            if isinstance(result, str):
                click.echo(f"{names[path]}: {result}", err=True)
                unusable.append(Rejection(names[path], result))
            else:
                yield _build_answer(names[path], result, model, options)

    _write_answers(answers(), max(map(len, names.values())), model, options, target)
    if maps is not None:
        maps.print_summary()
    links = filter(None, (describe_links(paths, source) for source, _ in sources if source.is_dir()))
    for line in (*warnings_of_formats(converted, unusable), *_left_out(left_out), *links):
        click.echo(line, err=True)
    _require_usable(len(unusable), failures, len(paths))


def _build_answer(name: str, result: FileAnswer, model: LoadedModel, options: PredictOptions) -> Answer:
    probabilities = dict(zip(model.class_names, map(float, result.probabilities), strict=True))
    labels = predicted_labels(probabilities, model, options)
    return Answer(name, labels, probabilities, result.known, result.accepted)


def _write_answers(
    answers: Iterator[Answer],
    width: int,
    model: LoadedModel,
    options: PredictOptions,
    target: tuple[Store, str] | None,
) -> None:
    """Print the answers, with names padded to `width`, or write them to the CSV file `target`."""
    is_multi = model.data.labels == "multi"
    if target is None:
        _print_answers(answers, width, is_multi, options)
    else:
        columns = (model.class_names, is_multi, options.top, model.level is not None)
        _write_csv(*target, _as_csv(answers, *columns))


class _MapFolder:
    """Folder of `--explain`, with one picture per image: NUMBER-IMAGE-LABEL-PROBABILITY.png."""

    def __init__(self, uri: str) -> None:
        """Raises UsageError for a file, for a folder in a run, and for a folder that is not writable."""
        from trainer.runs import require_outside_runs
        from trainer.storage import open_store
        from trainer.storage.store import is_bucket

        if not is_bucket(uri) and os.path.exists(uri) and not os.path.isdir(uri):
            raise UsageError(
                "--explain names a file.", "Give the name of a folder.", received=f"{shown_address(uri)!r}"
            )
        self.store = open_store(uri)
        require_outside_runs(self.store, "The folder")
        self.store.require_writable()
        self.count = 0

    def explained(
        self, results: Iterator[tuple[Path, FileAnswer | str]], model: LoadedModel, names: Mapping[Path, str]
    ) -> Iterator[tuple[Path, FileAnswer | str]]:
        """Write the picture of each image in `results` and yield its result, or why there is no picture."""
        for path, result in results:
            problem = "" if isinstance(result, str) else self._add(model, path, names[path])
            yield path, problem or result

    def _add(self, model: LoadedModel, path: Path, name: str) -> str:
        """Write the picture of the image at `path`; return why there is none, or an empty text."""
        from trainer.evaluate.predict import explain_file
        from trainer.report.heat import encode_pair

        explanation = explain_file(model, path)
        if isinstance(explanation, str):
            return explanation
        self.count += 1
        parts = (_file_part(path.stem), _file_part(explanation.label), f"{explanation.probability:.3f}")
        self.store.write(f"{self.count:04}-{'-'.join(parts)}.png", encode_pair(explanation, name))
        return ""

    def print_summary(self) -> None:
        """Print the folder and the number of pictures to standard error."""
        click.echo(f"maps       {shown_address(self.store.uri)}, {self.count} PNG files", err=True)


def _file_part(text: str) -> str:
    """Return `text` without characters that a file system could refuse, shortened to 60 bytes."""
    usual = re.sub(r"[^\w.]+", "_", text).encode()[:_NAME_BYTES]
    return usual.decode("utf-8", "ignore") or "_"


def _require_usable(unusable: int, failures: Sequence[TrainerError], images: int) -> None:
    """Raise DataError for unusable images and sources, TemporaryError if only servers were unreachable."""
    if not unusable and not failures:
        return
    is_temporary = not unusable and all(isinstance(failure, TemporaryError) for failure in failures)
    count = unusable + len(failures)
    raise (TemporaryError if is_temporary else DataError)(
        f"{count} of {images + len(failures)} images cannot be used.", "See the lines above."
    )


def _local_sources(
    images: Sequence[str], cache_dir: Path, console: Console, failures: list[TrainerError]
) -> list[tuple[Path, str]]:
    """Return (local path, URI) of each source; errors are printed and added to `failures`.

    Raises the error of the last source if all fail.
    """
    from trainer.data.download import UnreachableError

    sources = []
    for uri in images:
        try:
            sources.append((local_images(uri, cache_dir, console), uri))
        except (DataError, UnreachableError) as error:
            failures.append(error)
            if len(failures) == len(images):
                raise
            console.on_message(f"{printable(shown_address(uri))}: {error}")
    return sources


def _csv_file(options: PredictOptions) -> tuple[Store, str] | None:
    if options.csv is None:
        return None
    if options.as_json:
        raise UsageError("--json and --csv cannot be combined.", "Use one of them.")
    return output_file(options.csv, "--csv", (".csv",))


def _write_csv(store: Store, name: str, text: str) -> None:
    store.write(name, text.encode())
    click.echo(f"csv        {shown_address(store.at(name))}", err=True)


def local_images(uri: str, cache_dir: Path, progress: Progress) -> Path:
    """Return the local path of an image or a folder; URLs and gs:// URIs are downloaded."""
    from trainer.cli.paths import local_path
    from trainer.data.download import RetryPolicy, download
    from trainer.storage.store import without_scheme

    if not uri:
        raise UsageError("The name of an image is empty.", "Give a file, a folder or a URL.", received="''")
    if re.match(r"https?://", uri, re.IGNORECASE):
        return download(uri, None, cache_dir, _MOST_BYTES, progress, RetryPolicy())
    return local_path(without_scheme(uri), cache_dir, progress)


def _shown_name(path: Path, sources: Sequence[tuple[Path, str]]) -> str:
    """Return the name of an image: its path, or its URL if it was downloaded."""
    for source, uri in sources:
        if "://" in uri and (path == source or source in path.parents):
            relative = path.relative_to(source).as_posix()
            address = shown_address(uri)
            return printable(address if relative == "." else f"{address.rstrip('/')}/{relative}")
    return printable(str(path))


def predicted_labels(
    probabilities: Mapping[str, float], model: LoadedModel, options: PredictOptions | None = None
) -> dict[str, float]:
    """Return label to probability of the predicted labels, the most probable first."""
    options = options or PredictOptions()
    if model.data.labels == "multi":
        thresholds = dict(zip(model.class_names, model.thresholds, strict=True))
        count = len(probabilities)
    else:
        thresholds = dict.fromkeys(probabilities, 0.0)
        count = 1
    if options.threshold is not None:
        thresholds = dict.fromkeys(probabilities, options.threshold)
    return dict(list(labels_above(probabilities, thresholds).items())[: options.top or count])


def labels_above(shares: Mapping[str, float], thresholds: Mapping[str, float]) -> dict[str, float]:
    """Return label to probability for the labels that reach their threshold, the highest first."""
    labels = [label for label, share in shares.items() if share >= thresholds[label]]
    return {label: shares[label] for label in sorted(labels, key=lambda label: -shares[label])}


def _print_answers(answers: Iterator[Answer], width: int, is_multi: bool, options: PredictOptions) -> None:
    for answer in answers:
        if options.as_json:
            click.echo(json.dumps(_as_json(answer, is_multi, options.top is not None), ensure_ascii=False))
        elif answer.accepted is False:
            click.echo(f"{answer.name:<{width}}  {'unknown':<16} {_explain_rejection(answer)}")
        elif is_multi or options.top is not None:
            texts = [f"{printable(label)} {share:.3f}" for label, share in answer.labels.items()]
            click.echo(f"{answer.name:<{width}}  {', '.join(texts) or 'no label'}")
        else:
            label, share = next(iter(answer.labels.items()), ("no label", max(answer.probabilities.values())))
            click.echo(f"{answer.name:<{width}}  {printable(label):<16} {share:.3f}")


def _explain_rejection(answer: Answer) -> str:
    """Return the most probable class of a rejected image, and why it is rejected."""
    label, share = max(answer.probabilities.items(), key=lambda item: item[1])
    known = answer.known or 0.0
    p_value = "p < 0.01" if known < 0.01 else f"p = {known:.2f}"
    return f"(nearest: {printable(label)} {share:.2f}; unlike the training images, {p_value})"


def _as_json(answer: Answer, is_multi: bool, has_top: bool) -> dict[str, Any]:
    recognition: dict[str, Any] = (
        {} if answer.known is None else {"known": answer.known, "accepted": answer.accepted}
    )
    if is_multi:
        labels = {"path": answer.name, "labels": answer.labels, "probabilities": answer.probabilities}
        return labels | recognition
    label = next(iter(answer.labels), None)
    probability = max(answer.probabilities.values())
    row: dict[str, Any] = {"path": answer.name, "label": label, "probability": probability}
    row |= ({"top": answer.labels} if has_top else {}) | {"probabilities": answer.probabilities}
    return row | recognition


def _as_csv(
    answers: Iterator[Answer], class_names: Sequence[str], is_multi: bool, top: int | None, has_detector: bool
) -> str:
    """Return CSV with one row per image; with `has_detector`, the last columns are known and accepted.

    With `top`, the columns are path and that many pairs of label and probability. Otherwise they are those of
    predictions.csv: path, predicted (with several labels one column of 0 or 1 per label), probabilities.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    last = ["known", "accepted"] if has_detector else []
    if top is not None:
        count = min(top, len(class_names))
        pairs = [(f"label_{rank}", f"probability_{rank}") for rank in range(1, count + 1)]
        writer.writerow(["path", *(name for pair in pairs for name in pair), *last])
        for answer in answers:
            cells = [cell for label, share in answer.labels.items() for cell in (_cell(label), share)]
            padding = [""] * (2 * count - len(cells))
            writer.writerow([_cell(answer.name), *cells, *padding, *_recognition_cells(answer)])
        return text.getvalue()
    names = list(map(_storable, class_names))
    predicted = [f"predicted:{name}" for name in names] if is_multi else ["predicted"]
    writer.writerow(["path", *predicted, *(f"probability:{name}" for name in names), *last])
    for answer in answers:
        if is_multi:
            chosen: list[Any] = [int(name in answer.labels) for name in class_names]
        else:
            chosen = [_cell(next(iter(answer.labels), ""))]
        row = [_cell(answer.name), *chosen, *answer.probabilities.values()]
        writer.writerow([*row, *_recognition_cells(answer)])
    return text.getvalue()


def _recognition_cells(answer: Answer) -> list[float]:
    """Return the cells of the columns known and accepted (0 or 1); none without a detector."""
    return [] if answer.known is None else [answer.known, int(bool(answer.accepted))]


def _cell(text: str) -> str:
    return spreadsheet_cell(_storable(text))


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def output_file(uri: str, option: str, suffixes: Sequence[str]) -> tuple[Store, str]:
    """Return store and name of the file for `option`. Raises UsageError for another suffix, or in a run."""
    from trainer.runs import require_outside_runs
    from trainer.runs.publish import parent_of
    from trainer.storage import open_store
    from trainer.storage.store import is_bucket, split_uri

    folder, name = parent_of(uri)
    # Without its FILE, the option would take the next argument.
    if not name.lower().endswith(tuple(suffixes)) or (is_bucket(uri) and not split_uri(uri)[1]):
        raise UsageError(
            f"{option} requires a file name with the suffix {suffixes[0]}.",
            f"Use NAME{suffixes[0]} or gs://BUCKET/NAME{suffixes[0]}.",
            received=f"{shown_address(uri)!r}",
        )
    store = open_store(folder)
    require_outside_runs(store, "The file")
    if not is_bucket(uri) and os.path.isdir(uri):
        raise UsageError(
            f"{option} names a folder.", "Give the name of a file.", received=f"{shown_address(uri)!r}"
        )
    return store, name


def evaluate_command(
    model_uri: str,
    data: str,
    cache_dir: Path,
    as_json: bool,
    settings: Sequence[str],
    trust: bool = False,
    html: str | None = None,
) -> None:
    """Print the metrics of the model on every split of `data`; progress goes to standard error."""
    from trainer.cli.console import Console
    from trainer.cli.paths import local_model
    from trainer.evaluate.predict import evaluate_source
    from trainer.export import load_model

    target = None if html is None else output_file(html, "--html", (".html", ".htm"))
    splits: list[tuple[Split, AnyPredictions]] = []
    with Console(_LOG_SECONDS, stderr=True) as console:
        model = load_model(local_model(model_uri, cache_dir, console), trust)
        images = images_of(model_uri)
        metrics, rejected = evaluate_source(
            model, data, cache_dir, console, settings, images, lambda *split: splits.append(split)
        )
        for rejection in rejected:
            click.echo(f"left out: {rejection.name}: {rejection.reason}", err=True)
        if target is not None:
            console.on_phase("Writing the page")
            _write_page(target, model_uri, data, splits, metrics)
    if target is not None:
        click.echo(f"page       {shown_address(target[0].at(target[1]))}", err=True)
    if as_json:
        flat = {
            f"{split}/{name}": value for split, values in metrics.items() for name, value in values.items()
        }
        click.echo(json.dumps(flat, indent=2, ensure_ascii=False))
        return
    for split, values in metrics.items():
        click.echo(_summary(split, values, model.class_names))


def _write_page(
    target: tuple[Store, str],
    model_uri: str,
    data: str,
    splits: Sequence[tuple[Split, AnyPredictions]],
    metrics: Mapping[str, Mapping[str, float]],
) -> None:
    from trainer.report.evaluation_page import EvaluatedSplit, evaluation_page

    page = evaluation_page(
        shown_address(model_uri),
        shown_address(data),
        [EvaluatedSplit(predictions, split.pixels.gather) for split, predictions in splits],
        metrics,
        {split: f"{text}." for split, values in metrics.items() if (text := _trained_text(values))},
    )
    target[0].write(target[1], page.encode())


def images_of(model_uri: str) -> dict[str, Any]:
    """Return images.json of the model's run; empty without a run, or if an older version wrote the run."""
    from trainer.runs.artifacts import read_published_images
    from trainer.runs.publish import find_run, parent_of
    from trainer.storage import open_store

    run = find_run(model_uri)
    parent, name = parent_of(run.uri)
    return read_published_images(open_store(parent) if name == "model" else run)


def verify_command(uri: str) -> None:
    """Compare a finished run with its manifest. Raises DataError if it differs, UsageError without a run."""
    from trainer.runs import require_not_withdrawn
    from trainer.runs.publish import find_run, verify
    from trainer.storage.store import is_bucket

    run = find_run(uri)
    if not is_bucket(uri) and not Path(run.uri).is_dir():
        raise UsageError("There is no such run.", "Check the path.", received=f"{shown_address(uri)!r}")
    require_not_withdrawn(run)
    problems = verify(run)
    for problem in problems:
        click.echo(printable(without_secrets(problem)), err=True)
    if problems:
        raise DataError(
            "The run is not as it was published.", "See the lines above for the files.", received=run.uri
        )
    click.echo(f"{run.uri} matches its manifest.")


def _left_out(rejections: Sequence[Rejection]) -> Iterator[str]:
    """Yield one line per rejection reason, with the number of files and an example."""
    for reason, count in sorted(Counter(rejection.reason for rejection in rejections).items()):
        example = next(rejection.name for rejection in rejections if rejection.reason == reason)
        yield f"left out: {count} {'file' if count == 1 else 'files'}, {reason}, such as {example}"


def _summary(name: str, values: Mapping[str, float], class_names: Sequence[str]) -> str:
    figures = _label_figures if "hamming_loss" in values else _figures
    lines = [f"{name}: {values['count']:.0f} images", *figures(values)]
    if warning := _trained_text(values):
        lines.append(f"  note       {warning}")
    lines += [f"  {class_name[:20]:<20} {_scores(class_name, values)}" for class_name in class_names]
    return printable_lines("\n".join(lines))


def _figures(values: Mapping[str, float]) -> list[str]:
    low, high = values["accuracy_low"], values["accuracy_high"]
    return [
        f"  accuracy   {values['accuracy']:.3f} (95% interval {low:.3f} to {high:.3f})",
        f"  log loss   {values['log_loss']:.3f}   calibration error {values['calibration_error']:.3f}",
    ]


def _label_figures(values: Mapping[str, float]) -> list[str]:
    low, high = values["accuracy_low"], values["accuracy_high"]
    average = values.get("mean_average_precision")
    return [
        f"  mean average precision {'-' if average is None else f'{average:.3f}'}",
        f"  exact      {values['accuracy']:.3f} of the images (95% interval {low:.3f} to {high:.3f})",
        f"  F1         {values['micro_f1']:.3f} micro   Hamming loss {values['hamming_loss']:.3f}",
    ]


def _scores(name: str, values: Mapping[str, float]) -> str:
    if f"recall/{name}" not in values:
        return "-  no image of this class in these data"
    scores = [values[f"{metric}/{name}"] for metric in ("precision", "recall", "f1")]
    average = values.get(f"average_precision/{name}")
    start = "" if average is None else f"average precision {average:.3f}  "
    return start + "precision {:.3f}  recall {:.3f}  f1 {:.3f}".format(*scores)


def _trained_text(values: Mapping[str, float]) -> str:
    """Return a warning if the model was trained on some of the images, or else an empty text."""
    share, checked = values.get("trained_share", 0.0), values.get("trained_checked", 0.0)
    if not share:
        return ""
    checkable = "" if checked == values["count"] else " that could be checked"
    trained = f"{share * checked:.0f} of {checked:.0f} images{checkable}"
    return f"{trained} are training images, so this accuracy is too high"
