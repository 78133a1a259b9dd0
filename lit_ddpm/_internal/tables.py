"""Tables as text for a terminal, as HTML and as Markdown; the first row is the header."""

from collections.abc import Sequence
from itertools import zip_longest

from markupsafe import Markup, escape

Rows = Sequence[Sequence[str]]


def text_table(rows: Rows, widths: Sequence[int] = (), left: int = 1) -> str:
    """Returns lines of aligned columns, two spaces apart.

    Args:
        rows: The cells; a row may end before the last column.
        widths: The least width of each column.
        left: The number of left-aligned columns; the others are right-aligned.
    """
    longest = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    sizes = [max(pair) for pair in zip_longest(longest, widths, fillvalue=0)]
    lines = []
    for row in rows:
        cells = [cell.ljust(size) for cell, size in zip(row[:left], sizes, strict=False)]
        cells += [cell.rjust(size) for cell, size in zip(row[left:], sizes[left:], strict=False)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(rows: Rows, left: int = 1) -> str:
    """Returns a Markdown table whose first `left` columns are left-aligned, and the others right-aligned."""
    header, *others = rows
    rule = ["---" if column < left else "---:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *others))


def html_table(rows: Rows) -> Markup:
    """Returns an HTML table; cells are escaped unless they are `Markup`."""
    lines = []
    for tag, row in zip_longest(["th"], rows, fillvalue="td"):
        lines.append("".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row))
    return Markup("<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>")
