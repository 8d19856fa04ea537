"""Implementation of `trainer compare`: comparison of finished runs.

Runs are given as folders, gs:// URIs or metrics.json files. The output is a table with a verdict, JSON, or an
HTML page.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from trainer.cli.options import examples
from trainer.errors import UsageError
from trainer.sanitize import printable, shown_address

if TYPE_CHECKING:
    from trainer.compare.pair import Comparison
    from trainer.compare.runs import Run

_METRICS = ".json"
_PAGES = (".html", ".htm")


@click.command(
    epilog=examples(
        "trainer compare runs/first runs/second",
        "trainer compare runs/first runs/second --html comparison.html",
    )
)
@click.argument("uris", metavar="RUN RUN...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as one JSON object.")
@click.option("--html", metavar="FILE", help="Write an HTML page with curves and images that opens offline.")
def compare(uris: tuple[str, ...], as_json: bool, html: str | None) -> None:
    """Compare finished runs with significance tests.

    RUN is a run folder, its gs:// URI, or a metrics.json file. The first run is compared with each other one.
    """
    from trainer.cli.environment import cache_folder
    from trainer.compare.comparison import compare_all

    if len(uris) < 2:
        raise UsageError("A comparison needs at least two runs.", "Add another RUN.", received=len(uris))
    if html is not None:
        _require_page(html)
    runs = read_runs(uris)
    comparisons = compare_all(runs)
    if html is not None:
        from trainer.compare.page import comparison_page
        from trainer.runs.publish import parent_of
        from trainer.storage import open_store

        folder, name = parent_of(html)
        open_store(folder).write(name, comparison_page(runs, comparisons, cache_folder()).encode())
    print_comparison(runs, comparisons, as_json)
    if html is not None:
        click.echo(f"page       {html}", err=as_json)


def _require_page(html: str) -> None:
    """Raise UsageError unless `html` has the suffix .html or .htm and is outside of all runs."""
    from trainer.runs import require_outside_runs
    from trainer.runs.publish import parent_of
    from trainer.storage import open_store
    from trainer.storage.store import is_bucket, split_uri

    folder, name = parent_of(html)
    # Without its FILE, --html would take the next argument, a run or a pointer to one.
    is_page = name.lower().endswith(_PAGES) and not (is_bucket(html) and not split_uri(html)[1])
    if not is_page:
        raise UsageError(
            "--html requires a file name with the suffix .html.",
            "Use NAME.html or gs://BUCKET/NAME.html.",
            received=f"{shown_address(html)!r}",
        )
    require_outside_runs(open_store(folder), "The page")


def print_comparison(
    runs: Sequence[Run], comparisons: Sequence[Comparison], as_json: bool, is_spread: bool = False
) -> None:
    """Print runs and comparisons, with the spread if `is_spread` or for more than two repeated runs."""
    from trainer.compare.text import are_repeated, as_values, lines_of, spread, table

    if as_json:
        click.echo(json.dumps(as_values(runs, comparisons, is_spread), indent=2, ensure_ascii=False))
        return
    is_many = len(runs) > 2
    lines = table(runs)
    if is_spread or (is_many and are_repeated(runs)):
        lines += ["", *textwrap.wrap(spread(runs), 79)]
    for comparison in comparisons:
        title = [f"{comparison.first.name} and {comparison.second.name}"] if is_many else []
        lines += ["", *title, *lines_of(comparison)]
    for line in lines:
        click.echo(printable(line))


def read_runs(uris: Sequence[str]) -> list[Run]:
    """Return the runs at `uris` with distinct names. Raises UsageError, DataError, TemporaryError."""
    from trainer.compare.runs import read_metrics, read_run
    from trainer.runs.publish import find_run, parent_of
    from trainer.storage import open_store

    names = _names(uris)
    runs = []
    for uri, name in zip(uris, names, strict=True):
        if uri.lower().endswith(_METRICS):
            folder, file = parent_of(uri)
            content = open_store(folder).read(file)
            if content is None:
                raise UsageError("There is no such file.", "Check the path.", received=shown_address(uri))
            runs.append(read_metrics(content.data.decode("utf-8", "replace"), uri, name))
        else:
            runs.append(read_run(find_run(uri), name))
    return runs


def _names(uris: Sequence[str]) -> list[str]:
    """Return the shortest path suffixes of `uris` that are distinct, or else numbered names."""
    parts = [uri.rstrip("/").removesuffix("/metrics.json").split("/") for uri in uris]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(components[-count:]) for components in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]
