"""One table, four ways: in the report, as CSV with every digit, as Markdown and as LaTeX.

Numbers keep their leading zero, differences show their sign, and a minus is no hyphen: 0.849 [0.834, 0.864], −0.012.
"""

import math
import re
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fusion_jax.records import write_csv, write_text
from fusion_jax.reporting.html import MINUS, QUANTITY, Table, format_number

__all__ = [
    "Shown",
    "format_interval",
    "format_p",
    "format_percent",
    "latex_table",
    "markdown_table",
    "p_text",
    "write_tables",
]

WIDE = 28
"""Characters from which a column of text is set as a paragraph in LaTeX."""

LINES_PER_FLOAT = 42
"""Lines that fit on a page of LaTeX's article class beside caption and rules."""

CHARACTERS_PER_TEXT_WIDTH = 80
"""Characters of footnote size in a line of LaTeX's article class."""

LONG = 60
"""Characters from which a text is set as a paragraph in LaTeX even where others are broken into lines."""

GAP = 3
"""Characters of footnote size between two columns of LaTeX."""

PARAGRAPH = 12
"""Characters that a column of long text takes at least."""

NARROW = frozenset(" .,:;[]()|'!")
"""Signs that take little more than half the room of a digit."""


class Shown(str):
    """Text of a cell that still knows its numbers.

    A report shows the text; `write_tables` gives the numbers to the CSV file with every digit.

    Attributes:
      numbers: by what is added to the heading of the column: `""`, `"low"`, `"high"`.

    Example:
      >>> cell = Shown("< 0.001", {"": 3.2e-7})
      >>> cell, cell.numbers
      ('< 0.001', {'': 3.2e-07})
    """

    __slots__ = ("numbers",)
    numbers: Mapping[str, float]

    def __new__(cls, text: str, numbers: Mapping[str, float]) -> "Shown":
        """A cell of this text and these numbers."""
        cell = super().__new__(cls, text)
        cell.numbers = numbers
        return cell


def format_interval(value: float, low: float, high: float, digits: int = 3, *, signed: bool = False) -> Shown:
    """A number with its interval; a dash stands for what is not known.

    Args:
      value, low, high: of one scale.
      digits: after the decimal point.
      signed: a plus before what is positive, as for differences.

    Example:
      >>> format_interval(0.8491, 0.8338, 0.8644)
      '0.849 [0.834, 0.864]'
      >>> format_interval(-0.0004, -0.01, 0.012, signed=True)
      '0.000 [−0.010, +0.012]'
      >>> format_interval(0.7, float("nan"), float("nan"))
      '0.700'
    """
    text = _fixed(value, digits, signed)
    if not (math.isnan(low) and math.isnan(high)):
        text += f" [{_fixed(low, digits, signed)}, {_fixed(high, digits, signed)}]"
    return Shown(text, {"": float(value), "low": float(low), "high": float(high)})


def format_p(value: float) -> Shown:
    """A p-value: three decimals, and no more certainty at the ends than that.

    Example:
      >>> [format_p(p) for p in (0.0, 0.00099, 0.0321, 0.99999, float("nan"))]
      ['< 0.001', '< 0.001', '0.032', '> 0.999', '–']

    Raises:
      ValueError: not a probability.
    """
    if value < 0 or value > 1:
        raise ValueError(f"a p-value of {value!r}; expected 0 to 1.")
    text = "–" if math.isnan(value) else "< 0.001" if value < 0.001 else "> 0.999" if value > 0.999 else f"{value:.3f}"
    return Shown(text, {"": float(value)})


def p_text(value: float) -> str:
    """A p-value behind the letter p: "= 0.032", "< 0.001".

    Example:
      >>> p_text(0.0321), p_text(1e-7)
      ('= 0.032', '< 0.001')
    """
    text = str(format_p(value))
    return text if text[:1] in "<>–" else f"= {text}"


def format_percent(share: float, digits: int = 1) -> Shown:
    """A share in per cent; the CSV file holds the share.

    Example:
      >>> format_percent(0.30105), format_percent(float("nan"))
      ('30.1 %', '–')
    """
    number = _fixed(100 * share, digits, signed=False)
    return Shown(number if math.isnan(share) else f"{number} %", {"": float(share)})


def write_tables(folder: str | Path, name: str, table: Table) -> list[Path]:
    """Write a table to `name.csv`, `name.md` and `name.tex`.

    The CSV file holds full precision: a column of `Shown` cells becomes one column for each of their numbers.

    Args:
      folder: of the three files.
      name: without a suffix; also the label of the LaTeX table, as `tab:name`.
      table: as in a report.

    Returns:
      Paths of the files.

    Raises:
      ValueError: a row with more or fewer cells than there are columns, or two columns of one heading.

    Example:
      >>> import tempfile
      >>> table = Table(("model", "AUC"), [("Image-Only", format_interval(0.8491, 0.8338, 0.8644))], "n = 4,909.")
      >>> csv, markdown, latex = write_tables(tempfile.mkdtemp(), "metrics", table)
      >>> print(csv.read_text(), end="")
      model,AUC,AUC low,AUC high
      Image-Only,0.8491,0.8338,0.8644
    """
    _check(table)
    base = Path(folder)
    paths = [base / f"{name}{suffix}" for suffix in (".csv", ".md", ".tex")]
    write_csv(paths[0], _raw(table))
    write_text(paths[1], markdown_table(table))
    write_text(paths[2], latex_table(table, label=name))
    return paths


def markdown_table(table: Table) -> str:
    r"""A table as Markdown, columns aligned in the source too, caption first.

    Example:
      >>> print(markdown_table(Table(("model", "n"), [("a|b", 48), ("c", 7)], "Cases.")), end="")
      Cases.
      <BLANKLINE>
      | model | n   |
      | :---- | --: |
      | a\|b  | 48  |
      | c     | 7   |
    """
    _check(table)
    cells = [[_markdown(text) for text in row] for row in (table.columns, *_texts(table))]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rules = [
        "-" * (width - 1) + ":" if numeric else ":" + "-" * (width - 1)
        for width, numeric in zip(widths, _numeric(table), strict=True)
    ]
    head, *body = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in cells]
    lines = ["| " + " | ".join(row) + " |" for row in (head, rules, *body)]
    return f"{_markdown(table.caption)}\n\n" + "\n".join(lines) + "\n"


def latex_table(table: Table, *, label: str) -> str:
    r"""A table as LaTeX with the rules of booktabs; that package is the only one it needs.

    Columns of long text are set as paragraphs. Where a table is wider than the page, its intervals move to a second
    line, and columns that still have no room follow in a panel below, behind the names of the rows. A table longer
    than a page becomes several.

    Args:
      table: as in a report.
      label: of the table, as `tab:label`; further pages count on from `tab:label-2`.

    Example:
      >>> print(latex_table(Table(("model", "AUC"), [("A_1", 0.5)], "n = 7."), label="auc"), end="")
      % needs \usepackage{booktabs}
      \begin{table}[htbp]
      \centering
      \footnotesize
      \caption{n = 7.}
      \label{tab:auc}
      \begin{tabular}{lr}
      \toprule
      model & AUC \\
      \midrule
      A\_1 & 0.500 \\
      \bottomrule
      \end{tabular}
      \end{table}
    """
    _check(table)
    texts = _texts(table)
    panels = _panels(table, texts)
    heights = [sum(panel.lines[number] for panel in panels) for number in range(len(texts))]
    room = LINES_PER_FLOAT - sum(len(panel.head) + 2 for panel in panels[1:])
    # Pages of about one height: none holds a single row that did not fit on the one before.
    room = min(room, math.ceil(sum(heights) / max(1, math.ceil(sum(heights) / room))) + max(heights, default=0))
    pages: list[list[int]] = [[]]
    used = 0
    for number, lines in enumerate(heights):
        if pages[-1] and used + lines > room:
            pages.append([])
            used = 0
        pages[-1].append(number)
        used += lines
    document = [r"% needs \usepackage{booktabs}"]
    for number, rows in enumerate(pages, start=1):
        caption = _latex(table.caption) if number == 1 else "Continued."
        place = label if number == 1 else f"{label}-{number}"
        document += [
            r"\begin{table}[htbp]",
            r"\centering",
            r"\footnotesize",
            *([] if number == 1 else [r"\addtocounter{table}{-1}"]),
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{re.sub(r'[^A-Za-z0-9:.-]', '-', place)}}}",
        ]
        for below, panel in enumerate(panels):
            document += [
                *([r"\par\medskip"] if below else []),
                rf"\begin{{tabular}}{{{panel.columns}}}",
                r"\toprule",
                *panel.head,
                r"\midrule",
                *(line for row in rows for line in panel.rows[row]),
                r"\bottomrule",
                r"\end{tabular}",
            ]
        document.append(r"\end{table}")
    return "\n".join(document) + "\n"


class _Panel(NamedTuple):
    """Columns that stand beside each other: their types, the lines of head and rows, how many each row takes."""

    columns: str
    head: list[str]
    rows: list[list[str]]
    lines: list[int]


def _panels(table: Table, texts: Sequence[Sequence[str]]) -> list[_Panel]:
    numeric = _numeric(table)
    paragraph = [
        max(map(len, column)) > WIDE and not number
        for column, number in zip(zip(table.columns, *texts, strict=True), numeric, strict=True)
    ]
    cells = [[[text] for text in row] for row in texts]
    heads = [[name] for name in table.columns]
    widths = _widths(heads, cells, paragraph)
    short = all(len(text) <= LONG for row in texts for text in row)
    # A second line would stand below the last one of a paragraph, so that texts are broken here, or numbers are not.
    if sum(widths) > CHARACTERS_PER_TEXT_WIDTH and short:
        cells = [
            [_two_lines(text) if number else _broken(text, 20) for text, number in zip(row, numeric, strict=True)]
            for row in texts
        ]
        paragraph = [False] * len(paragraph)
        bodies = _widths([[""] for _ in heads], cells, paragraph)
        heads = [_broken(name, max(9, round(body - GAP))) for name, body in zip(table.columns, bodies, strict=True)]
        widths = _widths(heads, cells, paragraph)
    names = next((place for place, number in enumerate(numeric) if number), len(numeric)) or 1
    groups = [list(range(names))]
    for place in range(names, len(widths)):
        taken = sum(widths[column] for column in groups[-1])
        if len(groups[-1]) > names and taken + widths[place] > CHARACTERS_PER_TEXT_WIDTH:
            groups.append(list(range(names)))
        groups[-1].append(place)
    return [_panel(group, heads, cells, widths, numeric, paragraph) for group in groups]


def _panel(
    group: Sequence[int],
    heads: Sequence[Sequence[str]],
    cells: Sequence[Sequence[Sequence[str]]],
    widths: Sequence[float],
    numeric: Sequence[bool],
    paragraph: Sequence[bool],
) -> _Panel:
    # What the narrow columns and the gaps between columns leave is shared among the paragraphs.
    free = 0.98 - sum(GAP if paragraph[place] else widths[place] for place in group) / CHARACTERS_PER_TEXT_WIDTH
    longest = {
        place: max(len(text[0]) for text in (heads[place], *(row[place] for row in cells)))
        for place in group
        if paragraph[place]
    }
    weights = {place: min(max(length, 45), 120) for place, length in longest.items()}
    least = PARAGRAPH * len(weights) / CHARACTERS_PER_TEXT_WIDTH
    shares = {place: max(least, free) * weight / sum(weights.values()) for place, weight in weights.items()}
    lines = [
        max(
            len(row[place])
            if place not in shares
            else math.ceil(len(row[place][0]) / (shares[place] * CHARACTERS_PER_TEXT_WIDTH))
            for place in group
        )
        for row in cells
    ]
    return _Panel(
        "".join(
            rf"p{{{shares[place]:.2f}\textwidth}}" if place in shares else "r" if numeric[place] else "l"
            for place in group
        ),
        _lines([heads[place] for place in group], bottom=True),
        [_lines([row[place] for place in group], bottom=False) for row in cells],
        lines,
    )


def _lines(cells: Sequence[Sequence[str]], *, bottom: bool) -> list[str]:
    """Lines of LaTeX for cells of one line or more, which stand at the bottom or the top of the row."""
    height = max(map(len, cells))
    padded = [
        [*[""] * (height - len(cell)), *cell] if bottom else [*cell, *[""] * (height - len(cell))] for cell in cells
    ]
    lines = [" & ".join(map(_latex, line)) + r" \\" for line in zip(*padded, strict=True)]
    # A little room below rows of several lines shows where the next one begins.
    return lines if bottom or height == 1 else [*lines[:-1], lines[-1] + "[0.5ex]"]


def _broken(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def _two_lines(text: str) -> list[str]:
    """A number over its interval."""
    found = re.fullmatch(r"(.+?) ([\[(].*[\])])", text)
    return [text] if found is None else [found[1], found[2]]


def _widths(
    heads: Sequence[Sequence[str]], cells: Sequence[Sequence[Sequence[str]]], paragraph: Sequence[bool]
) -> list[float]:
    """Widths of columns with the gap beside them, in letters of LaTeX's footnote size; a paragraph's is its least."""
    return [
        GAP
        + (
            PARAGRAPH
            if long
            else max(_width(line) for cell in (heads[place], *(row[place] for row in cells)) for line in cell)
        )
        for place, long in enumerate(paragraph)
    ]


def _width(text: str) -> float:
    return sum(0.6 if sign in NARROW else 1 for sign in text)


def _fixed(value: float, digits: int, signed: bool) -> str:
    if not math.isfinite(value):
        return format_number(value)
    text = f"{value:.{digits}f}"
    if not float(text):  # a rounded zero has no sign
        return text.removeprefix("-")
    return ("+" if signed and value > 0 else "") + text.replace("-", MINUS)


def _check(table: Table) -> None:
    for number, row in enumerate(table.rows, start=1):
        if len(row) != len(table.columns):
            raise ValueError(
                f"table {table.caption!r}: row {number} has {len(row)} cells, the heading {len(table.columns)}; "
                "they must agree."
            )


def _texts(table: Table) -> list[list[str]]:
    return [[cell if isinstance(cell, str) else format_number(cell) for cell in row] for row in table.rows]


def _numeric(table: Table) -> list[bool]:
    """Whether a column holds numbers, as the report sees it."""
    texts = _texts(table)
    return [bool(texts) and all(QUANTITY.match(row[place]) for row in texts) for place in range(len(table.columns))]


def _raw(table: Table) -> dict[str, list[str | int | float]]:
    """Columns of the CSV file."""
    found: dict[str, list[str | int | float]] = {}
    for place, heading in enumerate(table.columns):
        cells = [row[place] for row in table.rows]
        suffixes = dict.fromkeys(suffix for cell in cells if isinstance(cell, Shown) for suffix in cell.numbers)
        for suffix in suffixes or [""]:
            name = f"{heading} {suffix}".strip()
            if name in found:
                raise ValueError(
                    f"table {table.caption!r}: two columns are called {name!r}; name them apart, or neither the CSV "
                    "file nor its reader can."
                )
            # What is no number, such as a reason for its absence, stands in the column of the value itself.
            found[name] = [
                cell.numbers.get(suffix, math.nan) if isinstance(cell, Shown) else "" if suffix else cell
                for cell in cells
            ]
    return found


def _markdown(text: str) -> str:
    one_line = " ".join(text.split())
    return re.sub(r"([\\|*_<`])|\](?=[(\[])", lambda match: "\\" + match[0], one_line)


LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    '"': "''",
    MINUS: "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "≠": r"$\neq$",
    "∞": r"$\infty$",
    "→": r"$\rightarrow$",
    "°": r"$^\circ$",
    "²": "$^2$",
    "³": "$^3$",
    "µ": r"$\mu$",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
    "’": "'",
    "“": "``",
    "”": "''",
    "\N{NO-BREAK SPACE}": "~",
    "\N{NARROW NO-BREAK SPACE}": r"\,",
}
"""Signs that mean something to LaTeX, or nothing without further packages."""

POWER = re.compile("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]{2,}|[⁰¹⁴⁵⁶⁷⁸⁹]")
FROM_SUPERSCRIPT = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def _latex(text: str) -> str:
    pieces = []
    end = 0
    one_line = text.replace("\n", " ")
    for power in POWER.finditer(one_line):
        pieces += [_latex_signs(one_line[end : power.start()]), f"$^{{{power[0].translate(FROM_SUPERSCRIPT)}}}$"]
        end = power.end()
    # A cell that begins with a bracket would be read as an argument of the line break before it.
    escaped = "".join([*pieces, _latex_signs(one_line[end:])])
    return "{}" + escaped if escaped.startswith(("[", "*")) else escaped


def _latex_signs(text: str) -> str:
    return "".join(LATEX.get(sign) or _latex_greek(sign) for sign in text)


def _latex_greek(sign: str) -> str:
    """A Greek letter as the formula that LaTeX has for it; any other sign as it is."""
    letter = re.fullmatch("GREEK (SMALL|CAPITAL) LETTER ([A-Z]+)", unicodedata.name(sign, ""))
    if letter is None:
        return sign
    name = letter[2].replace("LAMDA", "LAMBDA").lower()  # Unicode's spelling
    return f"$\\{name if letter[1] == 'SMALL' else name.capitalize()}$"
