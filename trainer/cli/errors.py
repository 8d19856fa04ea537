"""Command group with sections in its help, and error output with redacted URLs."""

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

_WHOLE_SUMMARY = 1_000


class MainGroup(click.Group):
    """The group of all commands: listed in sections, with redacted URLs in click's own usage errors."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._sections: dict[str, Sequence[str]] = {}

    def add_section(self, title: str, *commands: click.Command) -> None:
        """Add `commands`, which --help lists below `title` in this order."""
        self._sections[title] = [command.name or "" for command in commands]
        for command in commands:
            self.add_command(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands of each section, with a summary that is not cut."""
        width = max(map(len, self.commands))
        for title, names in self._sections.items():
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (f"{name:<{width}}", self.commands[name].get_short_help_str(_WHOLE_SUMMARY))
                        for name in names
                    ]
                )

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse as `click.Group` does."""
        words = list(args)  # click empties the list
        with _redacted_errors(words):
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Parse and invoke the subcommand as `click.Group` does."""
        with _redacted_errors(command_words(ctx)):
            return super().invoke(ctx)


def redact_tracebacks(words: Sequence[str]) -> None:
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
def _redacted_errors(words: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        error.message = without_secrets(error.message, words)  # type: ignore[misc]  # click prints this field
        raise
