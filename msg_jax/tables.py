"""Tables as text, for the terminal and for Markdown."""

from collections.abc import Sequence

Rows = Sequence[Sequence[str]]


def aligned(rows: Rows, left: int = 1) -> str:
    """Columns as wide as their widest cell; the first `left` are left-aligned, the others right-aligned.

    >>> print(aligned([["a", "10"], ["bc", "9"]]))
    a   10
    bc   9
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    place = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    lines = [[align(cell, width) for align, cell, width in zip(place, row, widths)] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def markdown(rows: Rows) -> list[str]:
    """Lines of a Markdown table whose first row is the header.

    >>> markdown([["a", "b"], ["1", "2"]])
    ['| a | b |', '| --- | --- |', '| 1 | 2 |']
    """
    header, *body = rows
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *body)]
