"""Command-line interface: thin commands with heavy imports inside them, and the processes that they start."""

from trainer.cli.app import main

__all__ = ["main"]
