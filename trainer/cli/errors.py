"""Error output with redacted URLs, in particular those of the command line."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, NoReturn

import click

from trainer.compat import command_words
from trainer.sanitize import printable_lines, without_secrets


class CleanGroup(click.Group):
    """A command group that redacts URLs in click's own usage errors."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse as `click.Group` does."""
        words = list(args)  # click empties the list
        with _cleaned(words):
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Parse and invoke the subcommand as `click.Group` does."""
        with _cleaned(command_words(ctx)):
            return super().invoke(ctx)


def clean_tracebacks(words: Sequence[str]) -> None:
    """Redact URLs in the tracebacks of unexpected errors; `words` is the command line."""

    def write(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        sys.stderr.write(without_secrets(text, words))

    sys.excepthook = write


def fail(message: str, exit_code: int, words: Sequence[str]) -> NoReturn:
    """Print `message` with redacted URLs and end the process at once; `words` is the command line."""
    # A closed pipe or a full disk must not change the exit code.
    with suppress(OSError):
        click.echo(f"Error: {printable_lines(without_secrets(message, words))}", err=True)
    with suppress(OSError):
        sys.stdout.flush()
    # A normal interpreter exit would wait for abandoned transfers.
    os._exit(exit_code)


@contextmanager
def _cleaned(words: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        error.message = without_secrets(error.message, words)  # type: ignore[misc]  # click prints this field
        raise
