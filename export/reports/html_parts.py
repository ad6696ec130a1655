"""Pieces of a verification's page. Text is escaped here; what is called html is taken as it is."""

from collections.abc import Collection, Mapping, Sequence
from html import escape


def table(heads: Sequence[str], rows: Sequence[str], *, numbers: Collection[int] = (), caption: str = "") -> str:
    """A table that scrolls by itself where it is too wide.

    Args:
        heads: of the columns.
        rows: from `row` or `group`.
        numbers: indices of the columns that hold numbers.
        caption: below it.
    """
    head = "".join(
        f"<th{classed('number' if index in numbers else '')}>{escape(text)}</th>" for index, text in enumerate(heads)
    )
    below = paragraph(caption, "soft") if caption else ""  # outside, so that it does not scroll away with the table
    return (
        f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>{below}'
    )


def row(title: str, cells: Sequence[str]) -> str:
    """A row: what it is of, and its cells."""
    return f"<tr><th>{escape(title)}</th>{''.join(cells)}</tr>"


def group(title: str, about: str, columns: int) -> str:
    """A row that heads the rows below it."""
    return f'<tr class="group"><th colspan="{columns}">{escape(title)} <span>{escape(about)}</span></th></tr>'


def text(content: str, kind: str = "") -> str:
    """A cell of text; `kind` is a class of the style sheet."""
    return f"<td{classed(kind)}>{escape(content)}</td>"


def number(content: str) -> str:
    """A cell of a number."""
    return f"<td{classed('number')}>{escape(content)}</td>"


def classed(kind: str) -> str:
    """The attribute for a class of the style sheet; nothing for none."""
    return f' class="{kind}"' if kind else ""


def facts(entries: Mapping[str, str], *, code: bool = False) -> str:
    """Names with what there is to say of them."""
    tag = ("<code>", "</code>") if code else ("", "")
    return (
        "<dl>"
        + "".join(f"<dt>{escape(name)}</dt><dd>{tag[0]}{escape(told)}{tag[1]}</dd>" for name, told in entries.items())
        + "</dl>"
    )


def figure(html: str, caption: str, *, title: str = "", wide: bool = False) -> str:
    """A plot with what it shows."""
    head = f"<b>{escape(title)}</b>" if title else ""
    inner = f'<div class="wide">{html}</div>' if wide else html
    return f"<figure>{inner}<figcaption>{head}{escape(caption)}</figcaption></figure>"


def paragraph(content: str, kind: str = "") -> str:
    """A paragraph."""
    return f"<p{classed(kind)}>{escape(content)}</p>"


def bullets(items: Sequence[str]) -> str:
    """A list of sentences."""
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


def sentence(clause: str) -> str:
    """A clause with a capital, unless it begins with the name of a file, and a full stop."""
    first = clause.split(" ", 1)[0]
    begun = clause if "." in first else f"{clause[:1].upper()}{clause[1:]}"
    return f"{begun}{'' if clause.endswith('.') else '.'}"
