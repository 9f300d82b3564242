"""What a browser would make of HTML: its tags, texts, tooltips and tables."""

from __future__ import annotations

from html.parser import HTMLParser

ALLOWED = {"div", "span", "bdi", "small", "b", "i", "table", "caption", "tr", "th", "td"}
ATTRIBUTES = {"class", "style", "title", "colspan"}


class Page(HTMLParser):
    """Parses HTML, and raises an AssertionError where it is not well formed or has anything that is not ours.

    Attributes:
        text: all text, as shown.
        tokens: the spans with a tooltip: their text, the lines of the tooltip, and their style.
        rows: the cells of all tables' rows.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.open = "", list[str]()
        self.tokens: list[tuple[str, list[str], str]] = []
        self.rows: list[list[str]] = []
        self._token: int | None = None
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert tag in ALLOWED and set(given) <= ATTRIBUTES, (tag, attrs)
        self.open.append(tag)
        if tag == "span" and "title" in given:
            self._token = len(self.open)
            self.tokens.append(("", str(given["title"]).split("\n"), str(given["style"])))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if self._token is not None and len(self.open) < self._token:
            self._token = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._token is not None:
            text, *rest = self.tokens[-1]
            self.tokens[-1] = (text + data, *rest)  # type: ignore[assignment]
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment
