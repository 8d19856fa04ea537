"""`trainer image build` and `push`: the engine's steps on the screen, and the names of the image at the end.

In: a variant, a base and a repository's name. Out: an image.
"""

from __future__ import annotations

from pathlib import Path

import click

from trainer.printable import printable

_WIDTH = 79


def build_command(variant: str, base: str, repository: str, network: str | None) -> None:
    """Build the image of the project's source here."""
    from trainer.launch.image import build_image, find_source, open_engine, tags_of

    source = find_source(Path.cwd(), variant, base)
    tags = tags_of(source, repository, variant)
    click.echo(f"source     {source.root}, commit {source.revision}")
    click.echo(f"image      {variant}, on {base}")
    client = open_engine()
    build_image(client, source, variant, base, tags, _say_step, network)
    size = client.inspect_image(tags[0])["Size"] / 1e9
    click.echo(f"built      {size:.2f} GB")
    for tag in tags:
        click.echo(f"           {tag}")


def push_command(variant: str, base: str, repository: str) -> None:
    """Push the image that was built of the project's source here."""
    from trainer.launch.image import find_source, open_engine, push_image, tags_of

    source = find_source(Path.cwd(), variant, base)
    tags = tags_of(source, repository, variant)
    push_image(open_engine(), source, tags, lambda line: None)
    for tag in tags:
        click.echo(f"pushed     {tag}")


def _say_step(line: str) -> None:
    """Say which step the engine is at; what each of them says is too much."""
    if line.startswith("Step "):
        click.echo(printable(line)[:_WIDTH])
