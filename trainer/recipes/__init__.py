"""Named specs, one YAML file each beside this one.

In: a name. Out: the YAML text. A recipe holds only what differs from the defaults; the
comment at its top says what it is, what it should reach and what it costs.
"""

from __future__ import annotations

import difflib
from importlib import resources

from trainer.exits import UsageError


def recipe_names() -> list[str]:
    """Return the names of all recipes, in alphabetical order."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def read_recipe(name: str) -> str:
    """Return the YAML text of the recipe `name`. Raises UsageError if there is none."""
    names = recipe_names()
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {nearest[0]}?" if nearest else f"There are: {', '.join(names)}."
        raise UsageError(f"There is no recipe of this name. {hint} Received: {name!r}")
    return resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def recipe_summary(name: str) -> str:
    """Return the first comment line of the recipe `name`."""
    return read_recipe(name).splitlines()[0].removeprefix("#").strip()
