"""Conditions on samples, as users write them: SQL's words, without SQL's reach.

    "length(text) > 5 and original_width >= 200"
      → sqlglot reads an expression → its parts between the ANDs → each node becomes an Ibis one

Only what stands in the table below is translated: comparisons, arithmetic, AND, OR, NOT, and
functions of one row. A subquery, a statement, a function that opens files or any other node is
refused, and no text of the user's ever becomes text of a query: names are looked up among the
columns there are, literals are bound. So a condition can do nothing but tell samples apart.

As in SQL a comparison with a missing value is neither true nor false. A sample is kept where every
part is true.
"""

import difflib
import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlglot
from sqlglot import exp

from gradmimic.errors import ConfigError, listed

if TYPE_CHECKING:
    import ibis.expr.types as ir

_MOST = 10_000  # characters: no condition that people write, and no nesting that breaks a stack


class Condition(NamedTuple):
    """One part of a condition: true, false, or unknown, of each sample.

    Attributes:
        text: what it says, in one spelling.
        node: as sqlglot read it.
    """

    text: str
    node: "exp.Expr"

    @property
    def columns(self) -> frozenset[str]:
        """The names of columns that it uses, as they are written: ``text`` or ``log.mimic``.

        Example:
            >>> sorted(conditions("length(text) > 5 or log.mimic > 0")[0].columns)
            ['log.mimic', 'text']
        """
        return frozenset(_name(node) for node in self.node.find_all(exp.Column))

    def over(self, columns: "Mapping[str, ir.Value]") -> "ir.BooleanValue":
        """Return the condition over columns.

        Args:
            columns: by the names that conditions use.

        Raises:
            ConfigError: there is no such column or function, or one does not take such values.

        Example:
            >>> import ibis, pyarrow as pa
            >>> rows = ibis.memtable(pa.table({"w": [150, 250, None]}))
            >>> found = conditions("w >= 200")[0].over({"w": rows.w})
            >>> rows.select(found=found).to_pyarrow()["found"].to_pylist()
            [False, True, None]
        """
        found = _Translation(self.text, columns)(self.node)
        if not found.type().is_boolean():
            raise ConfigError(
                f"{self.text} is {found.type()}, not true or false. Compare it with something, "
                f"e.g. {self.text} > 0."
            )
        return found


def conditions(text: str) -> list[Condition]:
    """Read a condition, and take it apart at its outermost ANDs.

    Args:
        text: a Boolean expression over columns, in the spelling of DuckDB's SQL.

    Returns:
        Its parts, in order: all of them have to hold.

    Raises:
        ConfigError: it is no expression.

    Example:
        >>> [part.text for part in conditions("length(text) > 5 and (w >= 200 and not nsfw)")]
        ['length(text) > 5', 'w >= 200', 'NOT nsfw']
    """
    if len(text) > _MOST:
        raise ConfigError(f"a condition has at most {_MOST:,} characters, this has {len(text):,}.")
    try:
        node = exp.condition(text, dialect="duckdb")
        return [Condition(_text(part), part) for part in _parts(node)]
    except RecursionError as error:
        raise ConfigError("this condition is nested too deeply. Write it as several.") from error
    except (sqlglot.errors.SqlglotError, ValueError) as error:
        raise ConfigError(
            f"cannot read the condition {text!r}. Write one expression over columns, such as "
            "length(text) > 5 and original_width >= 200, with texts in single quotes."
        ) from error


def unknown_column(name: str, known: Mapping[str, Any], used_by: str) -> ConfigError:
    """Return an error that says which columns there are, the nearest first."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return ConfigError(
        f"{used_by} needs a column {name!r}, which there is not.{hint} There are "
        f"{listed(known, most=20) or 'none'}."
    )


class _Operation(NamedTuple):
    takes: str  # a letter for each operand, the last one again for further ones behind a +
    make: Callable[..., Any]


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "t": ("a text", lambda kind: kind.is_string()),
    "n": ("a number", lambda kind: kind.is_numeric()),
    "b": ("a condition", lambda kind: kind.is_boolean()),
    # A column of empty lists alone has a type of its own, which Ibis does not know.
    "l": (
        "a text or a list",
        lambda kind: kind.is_string() or kind.is_array() or kind.is_unknown(),
    ),
    "a": ("any value", lambda kind: True),
}


def _among(value: Any, *others: Any) -> Any:
    return reduce(operator.or_, [value == other for other in others])


def _length(value: Any) -> Any:
    return (value.cast("array<string>") if value.type().is_unknown() else value).length()


def _least(*values: Any) -> Any:
    import ibis

    return ibis.least(*values)


def _greatest(*values: Any) -> Any:
    import ibis

    return ibis.greatest(*values)


def _first(*values: Any) -> Any:
    import ibis

    return ibis.coalesce(*values)


_OPERATIONS: "dict[type[exp.Expr], _Operation]" = {
    exp.Paren: _Operation("a", lambda value: value),
    exp.And: _Operation("bb", operator.and_),
    exp.Or: _Operation("bb", operator.or_),
    exp.Not: _Operation("b", operator.invert),
    exp.EQ: _Operation("aa", operator.eq),
    exp.NEQ: _Operation("aa", operator.ne),
    exp.LT: _Operation("aa", operator.lt),
    exp.LTE: _Operation("aa", operator.le),
    exp.GT: _Operation("aa", operator.gt),
    exp.GTE: _Operation("aa", operator.ge),
    exp.Between: _Operation("aaa", lambda x, low, high: x.between(low, high)),
    exp.In: _Operation("aa+", _among),
    exp.Add: _Operation("nn", operator.add),
    exp.Sub: _Operation("nn", operator.sub),
    exp.Mul: _Operation("nn", operator.mul),
    exp.Div: _Operation("nn", operator.truediv),
    exp.Mod: _Operation("nn", operator.mod),
    exp.Neg: _Operation("n", operator.neg),
    exp.Like: _Operation("tt", lambda text, pattern: text.like(pattern)),
    exp.ILike: _Operation("tt", lambda text, pattern: text.ilike(pattern)),
    exp.RegexpLike: _Operation("tt", lambda text, pattern: text.re_search(pattern)),
    exp.Contains: _Operation("tt", lambda text, part: text.contains(part)),
    exp.StartsWith: _Operation("tt", lambda text, part: text.startswith(part)),
    exp.EndsWith: _Operation("tt", lambda text, part: text.endswith(part)),
    exp.Split: _Operation("tt", lambda text, by: text.split(by)),
    exp.Length: _Operation("l", _length),
    exp.ArraySize: _Operation("l", _length),
    exp.Lower: _Operation("t", lambda text: text.lower()),
    exp.Upper: _Operation("t", lambda text: text.upper()),
    exp.Trim: _Operation("t", lambda text: text.strip()),
    exp.Abs: _Operation("n", lambda x: x.abs()),
    exp.Round: _Operation("n", lambda x: x.round()),
    exp.Floor: _Operation("n", lambda x: x.floor()),
    exp.Ceil: _Operation("n", lambda x: x.ceil()),
    exp.Sqrt: _Operation("n", lambda x: x.sqrt()),
    exp.Ln: _Operation("n", lambda x: x.ln()),
    exp.Least: _Operation("nn+", _least),
    exp.Greatest: _Operation("nn+", _greatest),
    exp.Coalesce: _Operation("aa+", _first),
}
# As DuckDB writes those that have a name.
_FUNCTIONS = (
    "abs, array_length, ceil, coalesce, contains, ends_with, floor, greatest, least, length, ln, "
    "lower, regexp_matches, round, sqrt, starts_with, string_split, trim, upper"
)


class _Translation:
    """Turns nodes into Ibis expressions over columns."""

    def __init__(self, text: str, columns: "Mapping[str, ir.Value]") -> None:
        self._text = text
        self._columns = columns

    def __call__(self, node: "exp.Expr") -> Any:
        """Translate a node and what is below it."""
        if isinstance(node, exp.Column):
            name = _name(node)
            if name not in self._columns:
                raise unknown_column(name, self._columns, f"the condition {self._text}")
            return self._columns[name]
        if isinstance(node, exp.Literal | exp.Boolean):
            return _literal(node)
        if isinstance(node, exp.Is):
            return self._identity(node)
        operation = _OPERATIONS.get(type(node))
        parts = list(node.iter_expressions())
        if operation is None or not _fits(operation.takes, len(parts)):
            raise ConfigError(
                f"a condition cannot use {_text(node)}, as {self._text} does. It compares columns "
                "and numbers or texts, with AND, OR, NOT, IN, BETWEEN, LIKE, IS NULL, "
                f"+ − * / %, and {_FUNCTIONS}."
            )
        values = [self(part) for part in parts]
        for position, (part, value) in enumerate(zip(parts, values, strict=True)):
            name, suits = _KINDS[_taken(operation.takes, position)]
            if not suits(value.type()):
                raise ConfigError(
                    f"{_text(node)} needs {name}, but {_text(part)} is {value.type()}."
                )
        try:
            found = operation.make(*values)
        except Exception as error:  # Ibis raises several kinds where types do not fit
            kinds = " and ".join(f"{_text(p)}, {v.type()}," for p, v in zip(parts, values))  # noqa: B905
            raise ConfigError(
                f"{_text(node)} does not work, as {kinds} do not fit each other."
            ) from error
        return ~found if node.args.get("negate") else found

    def _identity(self, node: exp.Is) -> Any:
        """Translate IS NULL, IS TRUE and IS FALSE."""
        value, other = self(node.this), node.expression
        if isinstance(other, exp.Null):
            return value.isnull()
        if isinstance(other, exp.Boolean) and value.type().is_boolean():
            return (value if other.this else ~value).fill_null(False)
        raise ConfigError(f"IS goes with NULL, or TRUE and FALSE of conditions, not {_text(node)}.")


def _parts(node: "exp.Expr") -> "list[exp.Expr]":
    """Take an expression apart at its outermost ANDs."""
    node = node.unnest()
    if isinstance(node, exp.And):
        return [*_parts(node.this), *_parts(node.expression)]
    return [node]


def _literal(node: "exp.Expr") -> Any:
    """Bind a number, a text or a truth value."""
    import ibis

    if isinstance(node, exp.Boolean) or node.is_string:
        return ibis.literal(node.this)
    number = float(node.this) if set(node.this) & set(".eE") else int(node.this)
    if abs(number) >= 2**63:
        raise ConfigError(f"{node.this} is too large a number for a condition.")
    return ibis.literal(number)


def _name(column: exp.Column) -> str:
    """Return the name of a column as conditions use it."""
    return ".".join(part.name for part in column.parts)


def _text(node: "exp.Expr") -> str:
    """Return a node in DuckDB's spelling, on one line."""
    return " ".join(node.sql(dialect="duckdb", comments=False, normalize_functions="lower").split())


def _fits(takes: str, n: int) -> bool:
    """Tell whether an operation takes so many operands."""
    return n >= len(takes) - 1 if takes.endswith("+") else n == len(takes)


def _taken(takes: str, position: int) -> str:
    """Return the kind of operand at a position."""
    letters = takes.rstrip("+")
    return letters[min(position, len(letters) - 1)]
