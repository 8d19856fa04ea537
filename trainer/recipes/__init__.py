"""Recipes: named specs, one YAML file each in this package.

A recipe contains only settings that differ from the defaults. The comment at its top describes it, with its
expected accuracy and cost.
"""

from __future__ import annotations

import difflib
from importlib import resources

from trainer.errors import UsageError


def recipe_names() -> list[str]:
    """Return the names of all recipes, sorted alphabetically."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def read_recipe(name: str) -> str:
    """Return the YAML text of the recipe `name`. Raises UsageError if it does not exist."""
    names = recipe_names()
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=1)
        remedy = f"Did you mean {nearest[0]}?" if nearest else f"Recipes: {', '.join(names)}."
        raise UsageError("The recipe does not exist.", remedy, received=repr(name))
    return resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def recipe_summary(name: str) -> str:
    """Return the first comment line of the recipe `name`."""
    return read_recipe(name).splitlines()[0].removeprefix("#").strip()
