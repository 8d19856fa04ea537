"""Command-line interface: thin commands with heavy imports inside them."""

from trainer.cli.app import main

__all__ = ["main"]
