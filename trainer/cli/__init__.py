"""The command line: thin commands, heavy imports inside them."""

from trainer.cli.app import main

__all__ = ["main"]
