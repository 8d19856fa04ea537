"""Errors on the screen, without the passwords of addresses.

In: an exception. Out: text whose addresses can be shown to anyone, those of the command line above all.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, NoReturn

import click

from trainer.printable import printable_lines, without_secrets


class CleanGroup(click.Group):
    """A group of commands whose usage errors, click's own, quote no secret of what was typed."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse as click does."""
        words = list(args)  # click takes them from the list
        with _cleaned(words):
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Parse and call the subcommand as click does."""
        with _cleaned([*ctx._protected_args, *ctx.args]):
            return super().invoke(ctx)


def clean_tracebacks(words: Sequence[str]) -> None:
    """Have the traceback of an unexpected error printed without the secrets of `words`, the command line."""

    def write(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        sys.stderr.write(without_secrets(text, words))

    sys.excepthook = write


def fail(message: str, exit_code: int, words: Sequence[str]) -> NoReturn:
    """Print `message` without the secrets of `words`, the command line, and end the process at once."""
    # A reader that went away, or a disk that is full, doesn't change how it ended.
    with suppress(OSError):
        click.echo(f"Error: {printable_lines(without_secrets(message, words))}", err=True)
    with suppress(OSError):
        sys.stdout.flush()
    # The interpreter's own end would wait for transfers that were given up.
    os._exit(exit_code)


@contextmanager
def _cleaned(words: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        error.message = without_secrets(error.message, words)  # type: ignore[misc]  # as it is printed from
        raise
