"""Implementation of `trainer predict`, `trainer evaluate` and `trainer verify`.

Results are printed to standard output, predictions and metrics as a table or JSON. Each image that can't be
used is one line on standard error.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from trainer.data.items import Rejection
from trainer.errors import DataError, UsageError
from trainer.sanitize import printable, printable_lines, shown_address, without_secrets

_LOG_SECONDS = 30.0


def predict_command(
    model_uri: str, images: Sequence[str], cache_dir: Path, as_json: bool, trust: bool = False
) -> None:
    """Print the prediction for each image; raise DataError at the end if one can't be used."""
    from trainer.cli.console import Console
    from trainer.cli.paths import local_model, local_path
    from trainer.data.checks import warnings_of_formats
    from trainer.data.readers.read_result import describe_links
    from trainer.evaluate.predict import classify_files, find_pictures
    from trainer.export import load_model

    with Console(_LOG_SECONDS, stderr=True) as console:
        places = [local_path(each, cache_dir, console) for each in images]
        paths, left_out = find_pictures(places)
        model = load_model(local_model(model_uri, cache_dir, console), trust)
    names = {path: printable(str(path)) for path in paths}
    width = max(map(len, names.values()))
    converted: Counter[str] = Counter()
    unusable: list[Rejection] = []
    for path, answer in classify_files(model, paths, lambda name: converted.update([name])):
        name = names[path]
        if isinstance(answer, str):
            click.echo(f"{name}: {answer}", err=True)
            unusable.append(Rejection(name, answer))
            continue
        shares = dict(zip(model.class_names, map(float, answer), strict=True))
        if model.data.labels == "multi":
            chosen = chosen_labels(shares, dict(zip(model.class_names, model.thresholds, strict=True)))
            click.echo(
                _labels_as_json(name, chosen, shares) if as_json else _labels_as_row(name, chosen, width)
            )
            continue
        click.echo(_as_json(name, shares) if as_json else _as_row(name, shares, width))
    links = filter(None, (describe_links(paths, place) for place in places if place.is_dir()))
    for line in (*warnings_of_formats(converted, unusable), *_left_out(left_out), *links):
        click.echo(line, err=True)
    if unusable:
        raise DataError(f"{len(unusable)} of {len(paths)} pictures can't be used; the lines above say why.")


def evaluate_command(
    model_uri: str, data: str, cache_dir: Path, as_json: bool, settings: Sequence[str], trust: bool = False
) -> None:
    """Print the metrics of the model on every split of `data`; progress goes to standard error."""
    from trainer.cli.console import Console
    from trainer.cli.paths import local_model
    from trainer.evaluate.predict import evaluate_source
    from trainer.export import load_model

    with Console(_LOG_SECONDS, stderr=True) as console:
        model = load_model(local_model(model_uri, cache_dir, console), trust)
        images = _images_of(model_uri)
        metrics, rejected = evaluate_source(model, data, cache_dir, console, settings, images)
    for each in rejected:
        click.echo(f"left out: {each.name}: {each.reason}", err=True)
    if as_json:
        flat = {f"{name}/{metric}": value for name, each in metrics.items() for metric, value in each.items()}
        click.echo(json.dumps(flat, indent=2, ensure_ascii=False))
        return
    for name, values in metrics.items():
        click.echo(_summary(name, values, model.class_names))


def _images_of(model_uri: str) -> dict[str, Any]:
    """Return images.json of the model's run; empty without a run, or if an older version wrote the run."""
    from trainer.runs.artifacts import read_published_images
    from trainer.runs.publish import find_run, parent_of
    from trainer.storage.store import open_store

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
        raise UsageError("There is no such run; give the run's folder.", received=f"{shown_address(uri)!r}")
    require_not_withdrawn(run)
    problems = verify(run)
    for problem in problems:
        click.echo(printable(without_secrets(problem)), err=True)
    if problems:
        raise DataError(
            "The run is not as it was published; the lines above say what differs.", received=run.uri
        )
    click.echo(f"{run.uri} is as it was published.")


def _left_out(rejections: Sequence[Rejection]) -> Iterator[str]:
    """Yield one line per rejection reason, with the number of files and an example."""
    for reason, count in sorted(Counter(each.reason for each in rejections).items()):
        example = next(each.name for each in rejections if each.reason == reason)
        yield f"left out: {count} {'file' if count == 1 else 'files'}, {reason}, such as {example}"


def _as_row(name: str, shares: Mapping[str, float], width: int) -> str:
    best = max(shares, key=lambda name: shares[name])
    return f"{name:<{width}}  {printable(best):<16} {shares[best]:.3f}"


def _as_json(name: str, shares: Mapping[str, float]) -> str:
    best = max(shares, key=lambda name: shares[name])
    row = {"path": name, "label": best, "probability": shares[best], "probabilities": shares}
    return json.dumps(row, ensure_ascii=False)


def chosen_labels(shares: Mapping[str, float], thresholds: Mapping[str, float]) -> dict[str, float]:
    """Return label to probability for the labels that reach their threshold, the highest first."""
    chosen = [label for label, share in shares.items() if share >= thresholds[label]]
    return {label: shares[label] for label in sorted(chosen, key=lambda label: -shares[label])}


def _labels_as_row(name: str, chosen: Mapping[str, float], width: int) -> str:
    texts = [f"{printable(label)} {share:.3f}" for label, share in chosen.items()]
    return f"{name:<{width}}  {', '.join(texts) or 'no label'}"


def _labels_as_json(name: str, chosen: Mapping[str, float], shares: Mapping[str, float]) -> str:
    return json.dumps({"path": name, "labels": chosen, "probabilities": shares}, ensure_ascii=False)


def _summary(name: str, values: Mapping[str, float], class_names: Sequence[str]) -> str:
    figures = _figures_of_labels if "hamming_loss" in values else _figures
    lines = [f"{name}: {values['count']:.0f} images", *figures(values), *_trained_lines(values)]
    lines += [f"  {each[:20]:<20} {_scores(each, values)}" for each in class_names]
    return printable_lines("\n".join(lines))


def _figures(values: Mapping[str, float]) -> list[str]:
    low, high = values["accuracy_low"], values["accuracy_high"]
    return [
        f"  accuracy   {values['accuracy']:.3f} (95% interval {low:.3f} to {high:.3f})",
        f"  log loss   {values['log_loss']:.3f}   calibration error {values['calibration_error']:.3f}",
    ]


def _figures_of_labels(values: Mapping[str, float]) -> list[str]:
    low, high = values["accuracy_low"], values["accuracy_high"]
    average = values.get("mean_average_precision")
    return [
        f"  mean average precision {'-' if average is None else f'{average:.3f}'}",
        f"  exact      {values['accuracy']:.3f} of the images (95% interval {low:.3f} to {high:.3f})",
        f"  F1         {values['micro_f1']:.3f} micro   Hamming loss {values['hamming_loss']:.3f}",
    ]


def _scores(name: str, values: Mapping[str, float]) -> str:
    if f"recall/{name}" not in values:
        return "-  no image of it in these data"
    scores = [values[f"{metric}/{name}"] for metric in ("precision", "recall", "f1")]
    average = values.get(f"average_precision/{name}")
    start = "" if average is None else f"average precision {average:.3f}  "
    return start + "precision {:.3f}  recall {:.3f}  f1 {:.3f}".format(*scores)


def _trained_lines(values: Mapping[str, float]) -> list[str]:
    """Return a warning line if the model was trained on some of the images."""
    share, checked = values.get("trained_share", 0.0), values.get("trained_checked", 0.0)
    if not share:
        return []
    looked = "" if checked == values["count"] else " that could be looked up"
    seen = f"{share * checked:.0f} of {checked:.0f} images{looked}"
    return [f"  note       {seen} are training images: this accuracy is too good"]
