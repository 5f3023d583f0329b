"""One self-contained HTML page: text, figures and tables, without scripts or anything from a network.

Readable at 360 px (tables scroll inside their own box, figures scale), on paper (always light, nothing cut in two) and
under a dark colour scheme. The style sheet swaps figures, not `<picture>`: browsers choose its source once, for the
screen, and would print dark figures on white paper.
"""

import base64
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np

from fusion_jax.records import write_text

__all__ = ["Figure", "Section", "Table", "format_number", "write_report"]

MINUS = "\N{MINUS SIGN}"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
QUANTITY = re.compile(rf"[{MINUS}+<>≤≥–-]?\s?\d|[–—-]$|$")
"""Beginning of a cell that belongs into a column of numbers; a dash or nothing stands for no value."""


TALL = 24  # rows: a table of more scrolls inside its box on a screen
PADDING = 2  # characters that the padding of a cell takes
LONG_TEXT = 60  # characters: more than fit on two lines of a narrow column
NO_BREAK = "\N{NO-BREAK SPACE}"
UNBROKEN = re.compile(rf"\[[{MINUS}+\d.,∞ –]+\]|[<>≤≥=] \d|\d %")
"""What is read as one thing: an interval, a comparison with a number, a percentage."""


class Figure(NamedTuple):
    """A figure in two colour schemes.

    Attributes:
      light, dark: SVG documents.
      caption: what is seen, with n.
      alt: what a reader who cannot see it has to know.
    """

    light: str
    dark: str
    caption: str
    alt: str


class Table(NamedTuple):
    """A table; the first column names the rows.

    Attributes:
      columns: headings, with units.
      rows: cells; numbers are formatted by `format_number`, strings stay as they are.
      caption: what is listed, with n.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]
    caption: str


class Section(NamedTuple):
    """A section of a report.

    Attributes:
      heading: also its entry in the table of contents.
      text: plain paragraphs.
      items: figures and tables, after the text.
    """

    heading: str
    text: Sequence[str]
    items: Sequence[Figure | Table]


def format_number(value: float | np.number | np.bool_, digits: int = 3) -> str:
    """A number as a table shows it: integers as they are, others with `digits` significant digits.

    Digits before the decimal point are never rounded away, and exponents are written as powers of ten.

    Example:
      >>> [format_number(v) for v in (48, 0.12345, 1234.6, -2.0, 1.5e-7, float("nan"))]
      ['48', '0.123', '1235', '−2.00', '1.50×10⁻⁷', '–']
    """
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return str(value).replace("-", MINUS)
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else f"{MINUS}∞")
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if not value:
        return "0"
    if -4 < int(exponent) < 6:
        text = f"{value:.{max(0, digits - 1 - int(exponent))}f}"
    else:
        text = f"{mantissa}×10{str(int(exponent)).translate(SUPERSCRIPTS)}"
    return text.replace("-", MINUS)


def write_report(
    path: str | Path,
    *,
    title: str,
    summary: Sequence[str],
    sections: Sequence[Section],
    record: Mapping[str, object],
) -> None:
    """Write a report to `path`, whole or not at all.

    Args:
      path: the HTML file, replaced if it exists.
      title: of the page.
      summary: findings, one sentence or two each, listed before everything else.
      sections: in the order of the page; figures and tables are numbered through.
      record: of the run, as from `fusion_jax.records.run_record`; time, revision and versions go to the footer.

    Raises:
      ValueError: a row of a table with more or fewer cells than it has columns.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fusion_jax.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    versions = record.get("versions")
    page = environment.get_template("report.html.j2").render(
        title=title,
        summary=[_unbroken(finding) for finding in summary],
        sections=_numbered(sections),
        time=record.get("time"),
        revision=record.get("revision"),
        versions=versions if isinstance(versions, Mapping) else {},
    )
    write_text(path, page)


def _numbered(sections: Sequence[Section]) -> list[dict[str, object]]:
    """Sections as the template takes them: items with their numbers, figures as data URIs, cells as text."""
    figures = tables = 0
    found = []
    for number, section in enumerate(sections, start=1):
        items = []
        for item in section.items:
            if isinstance(item, Figure):
                figures += 1
                items.append(
                    item._asdict()
                    | {"number": figures, "light": _data_uri(item.light), "dark": _data_uri(item.dark)}
                    | {"caption": _unbroken(item.caption)}
                )
            else:
                tables += 1
                items.append(_laid_out(item) | {"number": tables, "caption": _unbroken(item.caption)})
        found.append(
            {
                "number": number,
                "heading": section.heading,
                "text": [_unbroken(text) for text in section.text],
                "items": items,
            }
        )
    return found


def _laid_out(table: Table) -> dict[str, object]:
    for number, row in enumerate(table.rows, start=1):
        if len(row) != len(table.columns):
            raise ValueError(
                f"table {table.caption!r}: row {number} has {len(row)} cells, the heading {len(table.columns)}; "
                "they must agree."
            )
    rows = [[_unbroken(cell) if isinstance(cell, str) else format_number(cell) for cell in row] for row in table.rows]
    kinds = [_kind([row[column] for row in rows]) for column in range(len(table.columns))]
    names = min(14, max((len(row[0]) for row in rows if row), default=0)) + PADDING
    return {
        "columns": list(zip(table.columns, kinds, strict=True)),
        "rows": rows,
        "kinds": kinds,
        "names": names,
        "tall": len(rows) > TALL,
    }


def _kind(cells: Sequence[str]) -> str:
    """Class of a column: numbers stand at the right, and long texts keep room to be read beside longer ones."""
    if all(QUANTITY.match(cell) for cell in cells):
        return "number"
    return "long" if any(len(cell) > LONG_TEXT for cell in cells) else ""


def _unbroken(cell: str) -> str:
    """A text whose intervals, comparisons and percentages stay on one line."""
    return UNBROKEN.sub(lambda found: found[0].replace(" ", NO_BREAK), cell)


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
