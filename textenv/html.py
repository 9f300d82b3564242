"""HTML for notebooks: coloured tokens and tables of bounded size, in which every text is escaped.

A string is text, unless it is an `Html`. Text is shown and not run: markup is escaped, and so are control characters
and overrides of the writing direction (`textenv.data.printable`). Each text keeps its direction to itself (`<bdi>`),
and dollar signs are no equations (`mathjax_ignore`). The colours are translucent: the page's own text colour stays
readable on them, on a light page and on a dark one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from textenv.data import printable

MAX_TOKENS = 200  # of a completion
MAX_CHARACTERS = 400  # of a text
MAX_ROWS = 8  # of a table
POSITIVE, NEGATIVE = "33,113,181", "217,95,2"  # blue and orange, which colour-blind readers tell apart
STRONGEST = 0.55  # opacity of the largest value

Number = float | None  # None: there is no such number


class Html(str):
    """Markup, which is inserted as it is."""

    __slots__ = ()


def text_html(text: object, limit: int = MAX_CHARACTERS) -> Html:
    """A text, escaped; of a long one the beginning, and how many characters more there are."""
    if isinstance(text, Html):
        return text
    shown = str(text)
    more = f"<i> … {len(shown) - limit:,} more characters</i>" if len(shown) > limit else ""
    return Html(f"<bdi>{escape(printable(shown[:limit]))}</bdi>{more}")


def number_text(value: Number, digits: int = 4) -> str:
    """A number with some significant digits; an integer with all of them; "" for None."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else format(value + 0.0, f".{digits}g")  # + 0.0: no -0


def largest(values: Sequence[Number]) -> float:
    """The largest absolute value of the finite ones, 0 if there is none: the `scale` of a token's colour."""
    return max((abs(value) for value in values if value is not None and math.isfinite(value)), default=0.0)


def colour_style(value: Number, scale: float) -> str:
    """The style of a signed number: blue if it is positive, orange if negative, more opaque with |value| / scale."""
    if value is None or math.isnan(value) or value == 0:
        return ""
    share = min(abs(value) / scale, 1.0) if scale > 0 else 1.0
    return f"background-color:rgba({POSITIVE if value > 0 else NEGATIVE},{STRONGEST * share:.3f});"


def tokens_html(
    tokens: Sequence[str],
    values: Sequence[Number],
    details: Mapping[str, Sequence[Number]] | None = None,
    *,
    scale: float | None = None,
    limit: int = MAX_TOKENS,
) -> Html:
    """The tokens of a completion, each in the colour of its value.

    Args:
        tokens: the spelling of each token, [T].
        values: the numbers to colour by, [T].
        details: further numbers of each token, name -> [T], all of which are in its tooltip (`title`).
        scale: the absolute value of the strongest colour, by default the largest of `values`.
        limit: the number of tokens to show.

    Raises:
        ValueError: not one value per token.
    """
    scale = largest(values) if scale is None else scale
    spans = []
    for t, (token, value) in enumerate(zip(tokens, values, strict=True)):
        if t == limit:
            spans.append(f"<i>… {len(tokens) - limit:,} more tokens</i>")
            break
        lines = [f"{t}: {printable(token[:MAX_CHARACTERS])}"]
        lines += [f"{printable(name)} {number_text(column[t], 6) or '-'}" for name, column in (details or {}).items()]
        title = "&#10;".join(map(escape, lines))
        style = f"{colour_style(value, scale)}padding:0 2px;margin:0 1px;border-bottom:1px solid rgba(128,128,128,.5)"
        spans.append(f'<span style="{style}" title="{title}">{text_html(token)}</span>')
    return Html(" ".join(spans))


def table_html(
    header: Sequence[str], rows: Sequence[Sequence[str | Number]], *, caption: str = "", limit: int = MAX_ROWS
) -> Html:
    """A table; numbers are at the right of their cells, and rows after the first `limit` are counted.

    Raises:
        ValueError: the first row has not one cell for each of the header.
    """
    numeric = [not isinstance(value, str) for value in rows[0]] if rows else [False] * len(header)
    cells = "".join(_cell(text_html(name), tag="th", right=right) for name, right in zip(header, numeric, strict=True))
    lines = [f"<tr>{cells}</tr>"]
    lines += ["<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows[:limit]]
    if len(rows) > limit:
        lines.append(f'<tr><td colspan="{len(header)}"><i>… {len(rows) - limit:,} more</i></td></tr>')
    title = f'<caption style="text-align:left">{text_html(caption)}</caption>' if caption else ""
    return Html(f"<table>{title}{''.join(lines)}</table>")


def block_html(*parts: str) -> Html:
    """Parts one below the other, as the whole output of an object in a notebook."""
    inner = "".join(f'<div style="margin:4px 0">{text_html(part)}</div>' for part in parts)
    return Html(f'<div class="tex2jax_ignore mathjax_ignore">{inner}</div>')


def legend(name: str, scale: float) -> Html:
    """What the colours of `tokens_html` mean: a number's name, and its largest absolute value."""
    ends = ((-scale, "negative"), (scale, "positive")) if scale > 0 else ()
    shown = " ".join(
        f'<span style="{colour_style(value, scale)}padding:0 2px">{sign} {number_text(value)}</span>'
        for value, sign in ends
    )
    return Html(f"<small>colour: {text_html(name)} {shown}</small>")


def _cell(value: str | Number, tag: str = "td", right: bool = False) -> str:
    text = text_html(value) if isinstance(value, str) else number_text(value) or "-"
    side = "right" if right or not isinstance(value, str) else "left"
    return f'<{tag} style="text-align:{side};padding:1px 8px">{text}</{tag}>'
