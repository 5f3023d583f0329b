"""Formulas and rules over the columns of a table: `100 * (ast / ast_upper) / platelets`, `age >= 18 and not tips`.

A small language of its own, walked over Python's syntax tree and never executed: a rule in a cohort file can compute
and compare, nothing else. A comparison with a missing value is neither true nor false but missing, and `and`, `or` and
`not` carry that on as in Kleene's logic, so that what cannot be decided is told apart from what is false.

| part | meaning |
| --- | --- |
| `age`, `` `CT date` `` | a column; backticks where the name is no identifier |
| `2.5`, `'F'`, `'2020-01-31'`, `true` | number, text, date (a text where a date is compared), truth value |
| `+ - * / **` | arithmetic; a result that is not finite (division by zero, log of 0) is missing and logged |
| `< <= > >= == !=`, `in [...]`, `not in [...]` | comparisons, which may be chained: `18 <= age < 90` |
| `and or not` | logic of three values |
| `abs log log10 exp sqrt floor round(x, digits)` | of numbers; `round` takes halves to the even neighbour |
| `min(a, b, ...) max(a, b, ...)` | of numbers or dates; missing if one of them is |
| `year(date)` | the calendar year |
| `days_between(a, b) years_between(a, b)` | from a to b, negative if b is earlier |
| `missing(x) coalesce(a, b, ...)` | whether x is missing; the first that is not |

An empty text is a missing value, as is an empty cell. Columns of 0 and 1 may be used as truth values and the reverse.
"""

import ast
import difflib
import logging
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from fusion_jax import wording

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["Expression", "Values", "as_dates", "close_names", "column_values", "listed", "parse"]

logger = logging.getLogger(__name__)

LONGEST_TEXT = 10_000  # characters; Python's parser needs stack for every level
DEEPEST = 100  # levels of operations in each other
LONGEST_SHOWN = 200  # characters of an expression in a message
FEW_TEXTS = 50  # a text that is none of so few is more likely a misspelling than a rare value
ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?)?")

ARITHMETIC: dict[type[ast.AST], np.ufunc] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
}
ORDER: dict[type[ast.AST], np.ufunc] = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
}
EQUALITY: dict[type[ast.AST], np.ufunc] = {ast.Eq: np.equal, ast.NotEq: np.not_equal}
OF_NUMBERS = {"abs": np.abs, "log": np.log, "log10": np.log10, "exp": np.exp, "sqrt": np.sqrt, "floor": np.floor}
ARGUMENTS = {
    **dict.fromkeys(OF_NUMBERS, (1, 1)),
    "round": (1, 2),
    "min": (2, None),
    "max": (2, None),
    "year": (1, 1),
    "days_between": (2, 2),
    "years_between": (2, 2),
    "missing": (1, 1),
    "coalesce": (2, None),
}
"""Functions with the least and the largest number of their arguments."""

INSTEAD: dict[type[ast.AST], str] = {
    ast.BitAnd: "write `and`",
    ast.BitOr: "write `or`",
    ast.BitXor: "write `**` for a power",
    ast.Invert: "write `not`",
    ast.Is: "write `==`, or missing(x)",
    ast.IsNot: "write `!=`, or not missing(x)",
    ast.Attribute: "put a column name that holds a dot between backticks",
    ast.NamedExpr: "write `==` to compare",
    ast.IfExp: "write two rules, or coalesce(a, b)",
    ast.FloorDiv: "write floor(a / b)",
}
"""Advice for what people write by habit."""

Kind = Literal["number", "text", "truth", "date", "nothing"]


class Values(NamedTuple):
    """One value a row; `data` means nothing where `missing`.

    Attributes:
      kind: what `data` holds; "nothing" if every row is missing.
      data: float64, str objects, bool or datetime64[us], shape `(n,)`.
      missing: shape `(n,)`.
      name: how messages call it.
      literal: the text of a literal, from which a date may be read.
    """

    kind: Kind
    data: np.ndarray
    missing: np.ndarray
    name: str
    literal: str | None = None


@dataclass(frozen=True)
class Expression:
    """A formula or rule that was read and checked; `evaluate` applies it to a table.

    Attributes:
      text: as it was written, without surrounding spaces.
      where: the place it was read from, for messages.
      columns: the columns it reads, in the order they appear.
    """

    text: str
    where: str
    columns: tuple[str, ...]
    tree: ast.expr = field(repr=False, compare=False)

    def evaluate(self, table: "pandas.DataFrame") -> "pandas.Series":
        """The value in every row.

        Args:
          table: one row a case; its index names the cases in messages.

        Returns:
          float64, `boolean`, text or datetime64 with the index of `table`, missing where it cannot be known.

        Raises:
          ValueError: if a column is absent or does not hold what is computed with.

        Example:
          >>> import pandas as pd
          >>> labs = pd.DataFrame({"ast": [80.0, 40.0, None], "ast_upper": 40.0, "platelets": [100.0, 0.0, 90.0]})
          >>> parse("100 * (ast / ast_upper) / platelets", where="apri").evaluate(labs).tolist()
          [2.0, nan, nan]
        """
        for column in self.columns:
            if column not in table.columns:
                raise ValueError(
                    f"{self.where}: expression {_shown(self.text)}: {_unknown_column(column, table.columns)}"
                )
        return _series(_Evaluation(self, table).value(self.tree), table)

    def truth(self, table: "pandas.DataFrame") -> "pandas.Series":
        """As `evaluate`, for a rule: `boolean` with the index of `table`, missing where it cannot be decided.

        Raises:
          ValueError: if the expression is no condition.

        Example:
          >>> import pandas as pd
          >>> cases = pd.DataFrame({"age": [17.0, 40.0, None], "tips": [0, 0, 1]})
          >>> parse("age >= 18 and not tips", where="rule").truth(cases).tolist()
          [False, True, False]
        """
        for column in self.columns:
            if column not in table.columns:
                raise ValueError(
                    f"{self.where}: expression {_shown(self.text)}: {_unknown_column(column, table.columns)}"
                )
        evaluation = _Evaluation(self, table)
        return _series(evaluation.as_truth(evaluation.value(self.tree), self.tree), table)


def parse(text: str, *, where: str, columns: Iterable[str] | None = None) -> Expression:
    """Read an expression and check it before any data is touched.

    Args:
      text: the expression, see the table at the top of this module.
      where: the place it was read from, named in messages.
      columns: names that may be used; any if not given, to be checked when the table is there.

    Returns:
      The expression with the columns it reads.

    Raises:
      ValueError: if it cannot be read, holds something that is not part of the language or names an unknown column.

    Example:
      >>> parse("neutrophils / lymphocytes >= 2.8", where="cohort.toml: derive 'nlr'").columns
      ('neutrophils', 'lymphocytes')
    """
    text = text.strip()
    if not text:
        raise ValueError(f"{where}: the expression is empty. Write one such as \"age >= 18 and sex == 'F'\".")
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"{where}: an expression of {len(text)} characters; at most {LONGEST_TEXT}. Split it up.")
    source, quoted = _without_backticks(text, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's advice to programmers, such as on `1 is 1`
            tree = ast.parse(source, mode="eval").body
    except SyntaxError as error:
        place = "" if error.offset is None else f", character {error.offset}"
        hint = ""
        if re.search(r"(?<![=!<>])=(?!=)", text):
            hint = " Compare with `==`."
        raise ValueError(
            f"{where}: expression {_shown(text)}{place} cannot be read: {error.msg}.{hint} Texts stand between quotes, "
            "column names that are no identifiers or are words of the language between backticks."
        ) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{where}: expression {_shown(text)} cannot be read. Make it plainer.") from error
    names = _Check(text, source, quoted, where).run(tree)
    if columns is not None:
        known = list(columns)
        for name, position in names.items():
            if name not in known:
                raise ValueError(
                    f"{where}: expression {_shown(text)}, character {position}: {_unknown_column(name, known)}"
                )
    return Expression(text, where, tuple(names), tree)


def as_dates(series: "pandas.Series", *, where: str) -> "pandas.Series":
    """Dates of a column that holds dates, or texts in the one order that cannot be misread: 2020-01-31.

    Args:
      series: dates or texts `YYYY-MM-DD`, with `hh:mm[:ss]` or without.
      where: file and column, named in messages.

    Returns:
      datetime64[us] with the index of `series`, NaT where missing.

    Raises:
      ValueError: naming the first case that holds something else.

    Example:
      >>> import pandas as pd
      >>> as_dates(pd.Series(["2020-01-31", None]), where="labs.csv: column 'date'").dt.year.tolist()
      [2020.0, nan]
    """
    values = column_values(series, where)
    if values.kind not in ("date", "nothing"):
        values = _dates(values, series.index, where)
    return _series(values if values.kind == "date" else values._replace(kind="date"), series)


def close_names(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'age'?"`, or nothing, for the end of a message.

    Example:
      >>> close_names("Age", ["age", "sex"])
      " Did you mean 'age'?"
    """
    by_lower = {one.lower(): one for one in map(str, known)}
    found = difflib.get_close_matches(str(name).lower(), by_lower, n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(by_lower[one]) for one in found)}?" if found else ""


def listed(names: Iterable[object], *, at_most: int = 5) -> str:
    """The first few of many, texts in quotes, for a message.

    Example:
      >>> listed(["a", "b", "c"], at_most=2)
      "'a', 'b' and 1 more"
    """
    quoted = (repr(name if isinstance(name, int | float) else str(name)) for name in names)
    return wording.listed(quoted, at_most)


def _shown(text: str) -> str:
    """An expression in a message, cut where it is long."""
    return repr(text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}...")


def _unknown_column(name: str, known: Iterable[str]) -> str:
    known = list(known)
    hint = ""
    if name in ARGUMENTS:
        hint = f" {name} is a function: write {name}(...)."
    elif name in ("None", "nan", "NaN", "NA", "null"):
        hint = " Write missing(column) to ask for a missing value."
    return (
        f"no column {name!r}.{hint or close_names(name, known)} Columns: {listed(known, at_most=30) or 'none'}. "
        "A text stands between quotes."
    )


# Reading


def _without_backticks(text: str, where: str) -> tuple[str, dict[int, str]]:
    """Text of the same length that Python can read, and the quoted column names by the place they begin at."""
    source, quoted = list(text), {}
    quote, begin = "", 0
    for place, character in enumerate(text):
        if quote == "`":
            if character == "`":
                name = text[begin + 1 : place]
                if not name:
                    raise ValueError(
                        f"{where}: expression {_shown(text)}, character {begin + 1}: no name between backticks."
                    )
                # Joined to what follows, as in `a`b, the underscores below would be read as the first name alone.
                if re.match(r"[\w`]", text[place + 1 :]):
                    raise ValueError(
                        f"{where}: expression {_shown(text)}, character {place + 2}: a name goes on after its closing "
                        "backtick. Put the whole name between two backticks."
                    )
                quoted[begin], quote = name, ""
                source[begin : place + 1] = "_" * (place + 1 - begin)
        elif quote:
            # A backslash before the quote keeps a text open, as in Python.
            if character == quote and text[place - 1] != "\\":
                quote = ""
        elif character in "'\"`":
            quote, begin = character, place
        elif character in "\n\r\t":
            source[place] = " "  # a rule may be wrapped
    if quote == "`":
        raise ValueError(f"{where}: expression {_shown(text)}, character {begin + 1}: the backtick is never closed.")
    return "".join(source), quoted


class _Check:
    """Walks a tree once: only what the language has, names as they were written."""

    def __init__(self, text: str, source: str, quoted: dict[int, str], where: str) -> None:
        self.text, self.quoted, self.where = text, quoted, where
        self.encoded = source.encode()
        self.names: dict[str, int] = {}

    def run(self, tree: ast.expr) -> dict[str, int]:
        """The columns, by the character of their first appearance, counted from 1."""
        self.visit(tree, 0)
        return self.names

    def place(self, node: ast.expr) -> int:
        return len(self.encoded[: node.col_offset].decode())  # Python counts bytes

    def fail(self, node: ast.expr, what: str) -> ValueError:
        return ValueError(f"{self.where}: expression {_shown(self.text)}, character {self.place(node) + 1}: {what}")

    def refuse(self, node: ast.expr, part: ast.AST) -> ValueError:
        advice = INSTEAD.get(type(part), f"allowed are arithmetic, comparisons, and/or/not and {', '.join(ARGUMENTS)}")
        return self.fail(node, f"{type(part).__name__} is not part of this language; {advice}.")

    def visit(self, node: ast.expr, depth: int) -> None:
        if depth > DEEPEST:
            raise self.fail(node, f"more than {DEEPEST} operations in each other. Split the expression up.")
        match node:
            case ast.Constant(value=value):
                self.constant(node, value)
            case ast.Name():
                self.name(node)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Not(), operand=operand):
                self.visit(operand, depth + 1)
            case ast.BoolOp(values=values):
                for value in values:
                    self.visit(value, depth + 1)
            case ast.BinOp(left=left, op=op, right=right):
                if type(op) not in ARITHMETIC:
                    raise self.refuse(node, op)
                self.visit(left, depth + 1)
                self.visit(right, depth + 1)
            case ast.Compare():
                self.comparison(node, depth)
            case ast.Call():
                self.call(node, depth)
            case ast.UnaryOp(op=op):
                raise self.refuse(node, op)
            case ast.List() | ast.Tuple() | ast.Set():
                raise self.fail(node, "a list stands only after `in`.")
            case _:
                raise self.refuse(node, node)

    def constant(self, node: ast.Constant, value: object) -> None:
        if value is None:
            raise self.fail(node, "None is no value; write missing(column) to ask for a missing one.")
        if isinstance(value, bool | str):
            return
        if not isinstance(value, int | float):
            raise self.fail(node, f"{value!r} is no number, text or truth value.")
        if abs(value) > 1e300:
            raise self.fail(node, "a number beyond 1e300.")

    def name(self, node: ast.Name) -> None:
        place = self.place(node)
        # Not `node.id`: Python turns µ (micro) in a name into the Greek letter, and then no such column is found.
        name = self.quoted.get(place) or self.text[place : place + len(self.segment(node))]
        if place not in self.quoted and name in ("true", "false"):
            return
        node.id = name
        self.names.setdefault(name, place + 1)

    def segment(self, node: ast.expr) -> str:
        return self.encoded[node.col_offset : node.end_col_offset].decode()

    def comparison(self, node: ast.Compare, depth: int) -> None:
        self.visit(node.left, depth + 1)
        for op, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, ast.In | ast.NotIn):
                if not isinstance(right, ast.List | ast.Tuple | ast.Set) or not right.elts:
                    raise self.fail(right, "after `in` stands a list of values, such as ['A', 'B'].")
                for element in right.elts:
                    inner = element.operand if isinstance(element, ast.UnaryOp) else element
                    if not isinstance(inner, ast.Constant) and not _is_truth_name(inner):
                        raise self.fail(element, "a list after `in` holds numbers and texts only; texts in quotes.")
                    self.visit(element, depth + 1)
            elif type(op) in ORDER or type(op) in EQUALITY:
                self.visit(right, depth + 1)
            else:
                raise self.refuse(node, op)

    def call(self, node: ast.Call, depth: int) -> None:
        function = node.func.id if isinstance(node.func, ast.Name) else ""
        if function not in ARGUMENTS or self.place(node.func) in self.quoted:
            written = self.segment(node.func)
            raise self.fail(
                node, f"no function {written!r}.{close_names(written, ARGUMENTS)} Functions: {', '.join(ARGUMENTS)}."
            )
        if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
            raise self.fail(node, f"{function} takes plain values only, as in {function}(a).")
        least, most = ARGUMENTS[function]
        if len(node.args) < least or (most is not None and len(node.args) > most):
            expected = f"{least}" if most == least else f"at least {least}" if most is None else f"{least} or {most}"
            raise self.fail(node, f"{function} takes {expected} values, here are {len(node.args)}.")
        if function == "round" and len(node.args) == 2:
            digits = node.args[1].operand if isinstance(node.args[1], ast.UnaryOp) else node.args[1]
            whole = isinstance(digits, ast.Constant) and isinstance(digits.value, int) and abs(digits.value) <= 15
            if not whole:
                raise self.fail(node, "the digits of round are a whole number such as 1.")
        for argument in node.args:
            self.visit(argument, depth + 1)


def _is_truth_name(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("true", "false")


# Columns


def column_values(series: "pandas.Series", name: str) -> Values:
    """A column by what it holds: its dtype says too little, since texts and dates may be plain objects."""
    import pandas as pd

    missing = series.isna().to_numpy(bool, copy=True)
    if isinstance(series.dtype, pd.CategoricalDtype):
        bands = isinstance(series.cat.categories.dtype, pd.IntervalDtype)
        series = series.astype(str if bands else object).where(~missing)  # bands, as pd.cut makes them, are names
    if pd.api.types.is_bool_dtype(series.dtype):
        return _known("truth", series.fillna(False).to_numpy(bool), missing, name)
    if pd.api.types.is_numeric_dtype(series.dtype):
        if pd.api.types.is_complex_dtype(series.dtype):
            raise ValueError(f"{name} holds complex numbers; expected real ones.")
        if series.dtype.name.lower() in ("float16", "float32"):
            narrow = series.to_numpy(np.dtype(series.dtype.name.lower()), na_value=np.nan)
            # The decimal that the cell stands for: a float32 of 2.82 is 2.8199999332, and `>= 2.82` would be false.
            return _known("number", narrow.astype(np.str_).astype(np.float64), missing, name)
        return _known("number", series.to_numpy(np.float64, na_value=np.nan), missing, name)
    if isinstance(series.dtype, pd.DatetimeTZDtype):
        raise ValueError(
            f"{name} holds dates with a time zone ({series.dtype}); dates are compared as they stand in the record. "
            "Take the zone off."
        )
    if pd.api.types.is_datetime64_dtype(series.dtype):
        return _known("date", series.to_numpy("datetime64[us]"), missing, name)
    cells = series.to_numpy(object, copy=True)
    texts = np.array([isinstance(cell, str) for cell in cells], dtype=bool)
    missing |= np.array([isinstance(cell, str) and not cell.strip() for cell in cells], dtype=bool)
    here = cells[~missing]
    if texts[~missing].all():
        cells[missing] = ""
        return _known("text", cells, missing, name)
    held = pd.api.types.infer_dtype(here, skipna=True)
    if held == "boolean":
        return _known("truth", np.where(missing, False, cells).astype(bool), missing, name)
    if held in ("integer", "floating", "mixed-integer-float", "decimal"):
        return _known("number", np.where(missing, np.nan, cells).astype(np.float64), missing, name)
    if held in ("datetime", "datetime64", "date"):
        cells[missing] = None
        dates = pd.to_datetime(pd.Series(cells))
        return _known("date", dates.to_numpy("datetime64[us]"), missing, name)
    kinds = sorted({type(cell).__name__ for cell in here})
    example = {type(cell).__name__: place for place, cell in enumerate(cells) if not missing[place]}
    cells_named = ", ".join(f"{cells[at]!r} in {_case(series.index, at)}" for at in map(example.__getitem__, kinds))
    raise ValueError(f"{name} mixes {' and '.join(kinds)} ({cells_named}); expected one kind. Make the column uniform.")


def _case(index: "pandas.Index", place: int) -> str:
    """Name of a row: cohorts have a named index, the tables of other files have row numbers."""
    return f"{'row' if index.name is None else 'case'} {str(index[place])!r}"


def _known(kind: Kind, data: np.ndarray, missing: np.ndarray, name: str) -> Values:
    return Values("nothing" if missing.all() else kind, data, missing, name)


def _dates(values: Values, index: "pandas.Index", where: str) -> Values:
    """Texts read as dates."""
    import pandas as pd

    empty = np.datetime64("1970-01-01", "us")
    if values.kind == "text":
        unlike = np.array([not ISO_DATE.fullmatch(str(cell).strip()) for cell in values.data], bool) & ~values.missing
        readable = [
            None if bad else cell.strip() for bad, cell in zip(unlike | values.missing, values.data, strict=True)
        ]
        dates = pd.to_datetime(pd.Series(readable, dtype=object), format="ISO8601", errors="coerce").to_numpy(
            "datetime64[us]"
        )
        bad = np.flatnonzero((unlike | np.isnat(dates)) & ~values.missing)
        if not bad.size:
            return values._replace(kind="date", data=np.where(values.missing, empty, dates))
        found = f"{values.data[bad[0]]!r}"
    elif values.kind == "nothing":
        return values._replace(kind="date", data=np.full(len(values.missing), empty))
    else:
        bad = np.flatnonzero(~values.missing)
        cell = values.data[bad[0]]
        found = f"the number {cell:.15g}" if values.kind == "number" else f"the truth value {cell}"
    if values.literal is None:
        found = f"{found} in {_case(index, int(bad[0]))}"
    name = "" if where == values.name else f"{values.name} "
    found = f"found {found}" if values.literal is not None else f"{name}holds {found}"
    raise ValueError(
        f"{where}: {found}; expected a date as YYYY-MM-DD. Write dates in that order: 01/02/2020 "
        "is a day in January to some and in February to others."
    )


def _series(values: Values, like: "pandas.DataFrame | pandas.Series") -> "pandas.Series":
    import pandas as pd

    match values.kind:
        case "truth":
            return pd.Series(pd.arrays.BooleanArray(values.data.astype(bool), values.missing.copy()), index=like.index)
        case "text":
            texts = values.data.copy()
            texts[values.missing] = None
            return pd.Series(texts, index=like.index)
        case "date":
            dates = np.where(values.missing, np.datetime64("NaT", "us"), values.data.astype("datetime64[us]"))
            return pd.Series(dates, index=like.index)
        case "nothing":
            return pd.Series(np.nan, index=like.index, dtype=np.float64)
        case _:
            return pd.Series(np.where(values.missing, np.nan, values.data), index=like.index)


# Evaluation


class _Evaluation:
    """One walk over the tree of an expression with the columns of one table."""

    def __init__(self, expression: Expression, table: "pandas.DataFrame") -> None:
        self.expression, self.table, self.n = expression, table, len(table)
        self.columns: dict[str, Values] = {}  # read once, however often they stand in the expression
        self.held_texts: dict[str, set[str]] = {}
        self.here = f"{expression.where}: expression {_shown(expression.text)}"

    def fail(self, what: str) -> ValueError:
        return ValueError(f"{self.here}: {what}")

    def value(self, node: ast.expr) -> Values:
        match node:
            case ast.Constant(value=value):
                return self.literal(value)
            case ast.Name(id=name) if _is_truth_name(node) and name not in self.expression.columns:
                return self.literal(name == "true")
            case ast.Name(id=name):
                return self.column(name)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                truth = self.as_truth(self.value(operand), operand)
                return truth._replace(data=~truth.data, name=self.name(node))
            case ast.UnaryOp(op=op, operand=operand):
                number = self.as_number(self.value(operand))
                return number._replace(data=-number.data) if isinstance(op, ast.USub) else number
            case ast.BoolOp(op=op, values=values):
                return self.logic(node, (self.as_truth(self.value(v), v) for v in values), isinstance(op, ast.And))
            case ast.BinOp(left=left, op=op, right=right):
                return self.arithmetic(node, ARITHMETIC[type(op)], [self.value(left), self.value(right)])
            case ast.Compare():
                return self.comparison(node)
            case ast.Call(func=ast.Name(id=function), args=arguments):
                return self.call(node, function, arguments)
            case _:
                raise self.fail(f"{type(node).__name__} cannot be evaluated.")

    def name(self, node: ast.expr) -> str:
        return f"`{ast.unparse(node)}`"

    def literal(self, value: object) -> Values:
        # Views of one cell: a list after `in` may hold a thousand literals.
        present = np.broadcast_to(False, self.n)
        if isinstance(value, bool):
            return Values("truth", np.broadcast_to(value, self.n), present, str(value).lower(), "")
        if isinstance(value, str):
            data = np.broadcast_to(np.array(value, dtype=object), self.n)
            return Values("text", data, present, f"the text {value!r}", value)
        data = np.broadcast_to(np.array(value, dtype=np.float64), self.n)
        return Values("number", data, present, f"the number {value}", "")

    def column(self, name: str) -> Values:
        if name not in self.columns:
            self.columns[name] = self.read(name)
        return self.columns[name]

    def read(self, name: str) -> Values:
        series: Any = self.table[name]
        if series.ndim != 1:
            raise self.fail(f"the table has several columns {name!r}. Rename all but one.")
        try:
            return column_values(series, f"column {name!r}")
        except ValueError as error:
            raise self.fail(str(error)) from error

    def as_number(self, values: Values) -> Values:
        if values.kind in ("number", "truth", "nothing"):
            data = np.full(self.n, np.nan) if values.kind == "nothing" else values.data.astype(np.float64, copy=False)
            return values._replace(kind="number", data=data)
        if values.kind == "date":
            raise self.fail(f"{values.name} is a date; a number is needed. Use days_between or years_between.")
        raise self.fail(f"{self.held(values)}; a number is needed. Fix the cells, or give the column another name.")

    def held(self, values: Values) -> str:
        """What a column holds that it should not, with a case."""
        if values.literal is not None:
            return f"{values.name} stands here"
        first = int(np.flatnonzero(~values.missing)[0])
        for place in np.flatnonzero(~values.missing) if values.kind == "text" else ():
            try:
                float(values.data[place])
            except ValueError:
                first = int(place)  # the cell that made a text of a column of numbers
                break
        cell = values.data[first]
        shown = repr(cell) if isinstance(cell, str) else str(cell)
        return f"{values.name} holds the {values.kind} {shown} in {_case(self.table.index, first)}"

    def as_truth(self, values: Values, node: ast.expr) -> Values:
        if values.kind == "truth":
            return values
        if values.kind == "nothing":
            return values._replace(kind="truth", data=np.zeros(self.n, bool))
        if values.kind == "number":
            other = np.flatnonzero(~values.missing & (values.data != 0) & (values.data != 1))
            if not other.size:
                return values._replace(kind="truth", data=values.data == 1)
            at = int(other[0])
            found = f"{values.name} is {values.data[at]:g} in {_case(self.table.index, at)}"
        else:
            found = self.held(values)
        raise self.fail(f"{found}; a condition is needed here, or 0 and 1. Compare it: {ast.unparse(node)} > 0.")

    def logic(self, node: ast.expr, parts: Iterable[Values], conjunction: bool) -> Values:
        # Kleene: one false part decides `and`, one true part decides `or`, whatever else is missing.
        decided, missing = np.zeros(self.n, bool), np.zeros(self.n, bool)
        for part in parts:
            decided |= ~part.missing & (part.data != conjunction)
            missing |= part.missing
        return Values("truth", decided != conjunction, missing & ~decided, self.name(node))

    def arithmetic(self, node: ast.expr, function: np.ufunc, operands: list[Values]) -> Values:
        numbers = [self.as_number(operand) for operand in operands]
        with np.errstate(all="ignore"):
            data = function(*(number.data for number in numbers))
        missing = np.any([number.missing for number in numbers], axis=0)
        infinite = ~missing & ~np.isfinite(data)
        if infinite.any():
            cases = listed(self.table.index[infinite])
            logger.warning(
                "%s: %s is not finite in %d cases (%s); it is missing there",
                self.here,
                self.name(node),
                infinite.sum(),
                cases,
            )
        return Values("number", np.where(infinite, np.nan, data), missing | infinite, self.name(node))

    def comparison(self, node: ast.Compare) -> Values:
        parts, left = [], self.value(node.left)
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, ast.In | ast.NotIn):
                elements = right_node.elts if isinstance(right_node, ast.List | ast.Tuple | ast.Set) else []
                equal = (self.compare(ast.Eq(), left, self.value(element)) for element in elements)
                found = self.logic(node, equal, conjunction=False)
                parts.append(found._replace(data=~found.data) if isinstance(op, ast.NotIn) else found)
                continue
            right = self.value(right_node)
            parts.append(self.compare(op, left, right))
            left = right
        return parts[0] if len(parts) == 1 else self.logic(node, parts, conjunction=True)

    def compare(self, op: ast.cmpop, left: Values, right: Values) -> Values:
        missing = left.missing | right.missing
        name = f"`{left.name} compared with {right.name}`"
        if missing.all():
            return Values("truth", np.zeros(self.n, bool), missing, name)
        left, right = self.alike(left, right, ordered=type(op) in ORDER)
        if left.kind == "text":
            self.warn_of_unheard(left, right)
            self.warn_of_unheard(right, left)
        function = ORDER.get(type(op)) or EQUALITY[type(op)]
        return Values("truth", function(left.data, right.data).astype(bool), missing, name)

    def alike(self, left: Values, right: Values, *, ordered: bool = False) -> tuple[Values, Values]:
        """Both as values of one kind."""
        kinds = {left.kind, right.kind} - {"nothing"}
        if kinds <= {"number", "truth"}:
            return self.as_number(left), self.as_number(right)
        if kinds == {"text"} and not ordered:
            return left, right
        if kinds <= {"text", "date"}:
            try:
                return self.as_date(left), self.as_date(right)
            except ValueError as error:
                if kinds == {"text"}:  # '10' stands before '9'
                    raise ValueError(f"{error} Texts that are no dates have no order: list them after `in`.") from error
                raise
        odd = left if left.kind in ("text", "date") else right
        other = right if odd is left else left
        beside = "stands" if other.literal is not None else f"is a {other.kind}"
        raise self.fail(
            f"{self.held(odd)}, but {other.name} {beside} beside it; both must be of one kind. Texts stand between "
            "quotes, numbers do not."
        )

    def as_date(self, values: Values) -> Values:
        return values if values.kind == "date" else _dates(values, self.table.index, self.here)

    def warn_of_unheard(self, column: Values, literal: Values) -> None:
        if literal.literal is None or column.literal is not None or not self.n:
            return
        if column.name not in self.held_texts:
            self.held_texts[column.name] = set(column.data[~column.missing].tolist())
        known = self.held_texts[column.name]
        if literal.literal not in known and len(known) <= FEW_TEXTS:
            logger.warning(
                "%s: %s never holds %r; it holds %s",
                self.here,
                column.name,
                literal.literal,
                listed(sorted(known), at_most=10),
            )

    def call(self, node: ast.Call, function: str, argument_nodes: list[ast.expr]) -> Values:
        if function == "round":
            digits = int(ast.literal_eval(argument_nodes[1])) if len(argument_nodes) == 2 else 0
            number = self.as_number(self.value(argument_nodes[0]))
            return number._replace(data=np.round(number.data, digits), name=self.name(node))
        arguments = [self.value(argument) for argument in argument_nodes]
        if function in OF_NUMBERS:
            return self.arithmetic(node, OF_NUMBERS[function], arguments)
        if function == "missing":
            return Values("truth", arguments[0].missing.copy(), np.zeros(self.n, bool), self.name(node))
        if function in ("min", "max"):
            return self.extreme(node, np.minimum if function == "min" else np.maximum, arguments)
        if function == "coalesce":
            return self.coalesce(node, arguments)
        dates = [self.as_date(argument) for argument in arguments]
        missing = np.any([date.missing for date in dates], axis=0)
        # Any date stands for a missing one, so that the arithmetic below meets none.
        filled = [np.where(missing, np.datetime64("2000-01-01", "us"), date.data) for date in dates]
        if function == "year":
            data = filled[0].astype("datetime64[Y]").astype(np.int64) + 1970.0
        elif function == "days_between":
            data = (filled[1] - filled[0]) / np.timedelta64(1, "D")
        else:
            data = _years_between(*filled)
        return Values("number", data, missing, self.name(node))

    def extreme(self, node: ast.expr, function: np.ufunc, arguments: list[Values]) -> Values:
        if any(argument.kind == "date" for argument in arguments):
            arguments = [self.as_date(argument) for argument in arguments]
        else:
            arguments = [self.as_number(argument) for argument in arguments]
        data, missing = arguments[0].data, arguments[0].missing
        for argument in arguments[1:]:
            data, missing = function(data, argument.data), missing | argument.missing
        return Values(arguments[0].kind, data, missing, self.name(node))

    def coalesce(self, node: ast.expr, arguments: list[Values]) -> Values:
        result = arguments[0]
        for argument in arguments[1:]:
            if argument.kind == "nothing":
                continue
            if result.kind == "nothing":
                result = argument
            elif result.kind != argument.kind:
                result, argument = self.alike(result, argument)
            data = np.where(result.missing, argument.data, result.data)
            result = result._replace(data=data, missing=result.missing & argument.missing)
        return result._replace(name=self.name(node), literal=None)


def _years_between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Anniversaries passed, and the part of the year since the last.

    Not days over 365.25: that makes somebody 17.9986 years old on the day they turn 18. Who was born on 29 February
    has the anniversary on 1 March in other years.
    """
    sign = np.where(end < start, -1.0, 1.0)
    first, last = np.minimum(start, end), np.maximum(start, end)
    month = first.astype("datetime64[M]")
    since = first - month.astype("datetime64[us]")

    def anniversary(years: np.ndarray) -> np.ndarray:
        return (month + (12 * years).astype("timedelta64[M]")).astype("datetime64[us]") + since

    years = (last.astype("datetime64[Y]") - first.astype("datetime64[Y]")).astype(np.int64)
    years = years - (anniversary(years) > last)
    passed, following = anniversary(years), anniversary(years + 1)
    return sign * (years + (last - passed) / (following - passed))
