"""Parsing of documented command lines."""

from __future__ import annotations

import click

from trainer.cli.app import cli


def parse(words: list[str]) -> None:
    """Parse a command line with click, without running the command."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        subcommand = command.commands.get(words[0])
        assert subcommand is not None, words
        command, words = subcommand, words[1:]
    if isinstance(command, click.Group) and not words:
        return  # a group without a subcommand
    with command.make_context("trainer", list(words)):
        pass
