"""Implementation of `trainer image build` and `trainer image push`.

Prints the steps of the container engine, and the tags of the image at the end.
"""

from __future__ import annotations

from pathlib import Path

import click

from trainer.cli.options import examples, image_options
from trainer.sanitize import printable

_WIDTH = 79
_LOG_SECONDS = 10.0


@click.group(
    epilog=examples(
        "trainer image build", "trainer image push --name europe-docker.pkg.dev/my-project/ml/trainer"
    )
)
def image() -> None:
    """Build and push the container image."""


@image.command(
    epilog=examples(
        "trainer image build --variant gpu", "trainer image build --variant cpu --weights efficientnetv2-b0"
    )
)
@image_options
@click.option(
    "--network", metavar="MODE", help="Network mode of the build, such as host.  [default: the engine's]"
)
@click.option(
    "--weights",
    metavar="NAME",
    multiple=True,
    help="Pretrained weights to include, such as efficientnetv2-b0, for clusters without a network.",
)
def build(variant: str, base: str, name: str, network: str | None, weights: tuple[str, ...]) -> None:
    """Build the image from this project's source.

    Uses the Docker engine at DOCKER_HOST, or the local one if it is not set."""
    from trainer.cli.console import Console
    from trainer.cli.environment import cache_folder
    from trainer.launch.container import open_engine
    from trainer.launch.image import build_image, find_root, find_source, stage_weights, tags_of

    with Console(_LOG_SECONDS) as console:
        staged = stage_weights(find_root(Path.cwd()), weights, cache_folder(), console)
    for path in staged:
        click.echo(f"weights    {path.name}")
    source = find_source(Path.cwd(), variant, base)
    tags = tags_of(source, name, variant)
    click.echo(f"source     {source.root}, commit {source.revision}")
    click.echo(f"image      {variant}, on {base}")
    client = open_engine()
    build_image(client, source, variant, base, tags, _print_step, network)
    size = client.inspect_image(tags[0])["Size"] / 1e9
    click.echo(f"built      {size:.2f} GB")
    for tag in tags:
        click.echo(f"           {tag}")


@image.command(
    epilog=examples(
        "trainer image push --name europe-docker.pkg.dev/my-project/ml/trainer",
        "trainer image push --variant cpu --name ghcr.io/me/trainer",
    )
)
@image_options
def push(variant: str, base: str, name: str) -> None:
    """Push the image of this source. Commit all changes first."""
    from trainer.launch.container import open_engine
    from trainer.launch.image import find_source, push_image, tags_of

    source = find_source(Path.cwd(), variant, base)
    tags = tags_of(source, name, variant)
    push_image(open_engine(), source, tags, _print_layer)
    for tag in tags:
        click.echo(f"pushed     {tag}")


def _print_layer(line: str) -> None:
    """Print the result of each layer, without its upload progress."""
    if not line.startswith(("Preparing", "Waiting", "Pushing")):
        click.echo(printable(f"           {line}")[:_WIDTH])


def _print_step(line: str) -> None:
    """Print the current build step, without its output."""
    if line.startswith("Step "):
        click.echo(printable(line)[:_WIDTH])
