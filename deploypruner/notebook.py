"""What objects look like in a notebook: a line, and a small table that needs no style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_MOST = 200
_CELL = "text-align:left; padding:.15em .8em .15em 0; vertical-align:top"


def html_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A title and a table, every text escaped; of more than 200 rows the first, and how many there are.

    Args:
        title: One sentence.
        heads: Of the columns.
        rows: As many cells each.
    """
    head = "".join(f'<th style="{_CELL}">{escape(text)}</th>' for text in heads)
    cells = (f'<td style="{_CELL}">{{}}</td>' * len(heads)).format
    body = "".join(f"<tr>{cells(*(escape(str(cell)) for cell in row))}</tr>" for row in rows[:_MOST])
    more = f"<p>and {len(rows) - _MOST} more</p>" if len(rows) > _MOST else ""
    return f"<p><b>{escape(title)}</b></p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def html_page(summary: str, page: str) -> str:
    """A whole page of its own, folded: styles and scripts of it stay inside.

    Args:
        summary: What is clicked to see it.
        page: HTML that needs no other file.
    """
    frame = f'<iframe srcdoc="{escape(page)}" style="width:100%; height:40em; border:1px solid #8888"></iframe>'
    return f"<details><summary>{escape(summary)}</summary>{frame}</details>"
