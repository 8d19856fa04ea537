"""Rendering of Jinja templates to self-contained HTML.

All values are escaped, except markup.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jinja2
from markupsafe import Markup

from trainer.report.names import format_count, format_duration, format_share, shorten


def render(template: str, context: Mapping[str, Any], *packages: str) -> str:
    """Return the page of a template in this package or in one of `packages`.

    Characters that UTF-8 can't encode, such as undecodable bytes of a file name, become backslash escapes.
    """
    loaders = [jinja2.PackageLoader(package, "") for package in ("trainer.report", *packages)]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "share": format_share,
        "duration": format_duration,
        "count": format_count,
        "shorten": shorten,
        "broken": _broken,
    }
    page = environment.get_template(template).render(context)
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def _broken(name: str) -> Markup:
    """Return `name` for HTML, with line-break opportunities after slashes and underscores."""
    return Markup("<wbr>").join(re.split(r"(?<=[/_])", name))
