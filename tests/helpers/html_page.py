"""HTML parser for assertions on generated pages."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "wbr", "br", "link", "input", "hr"}
REFERENCES = {"src", "href", "xlink:href", "srcset", "poster", "data", "action", "background"}


class Page(HTMLParser):
    """Tags and text of a page; fails on a tag that is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] or "" for _, attributes in self.tags if attribute in attributes]

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def require_self_contained(page: Page, text: str) -> None:
    """Assert that the page loads nothing, runs no script, and has each referenced ID exactly once."""
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in REFERENCES & set(attributes):
            value = attributes[name] or ""
            assert value.startswith("data:image/") or value.removeprefix("#") in ids
    styles = " ".join([*page.values("style"), *re.findall(r"<style>(.*?)</style>", text, re.DOTALL)])
    assert "@import" not in styles
    assert all(target.strip("#'\"") in ids for target in re.findall(r"url\((.*?)\)", text))
