"""Tables as markdown, LaTeX (booktabs), csv and page cells; rounded text for readers, full precision in the csv."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rgpo.report.stats.bootstrap import MIN_RUNS, Interval

Cell = str | float
Row = Mapping[str, Cell]
NOTHING = "–"
MANY = 1000.0  # percent, above which a factor is easier to read
MAX_WORDS = 28  # most characters of a cell that does not wrap in LaTeX
_TEX = {"\\": r"\textbackslash{}", **{c: f"\\{c}" for c in "&%$#_{}"}}
_TEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_TEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--", "≤": r"$\leq$", "≥": r"$\geq$"}
_TEX |= {"∞": r"$\infty$", "Δ": r"$\Delta$"}


@dataclass(frozen=True)
class Column:
    """A column for readers: title, function from row to cell text, and key by which the page sorts."""

    title: str
    text: Callable[[Row], str]
    left: bool = False  # align words left, numbers right
    key: str = ""  # key of the row's raw value


@dataclass(frozen=True)
class Table:
    """Rows of raw values, whose keys are the csv's columns, and the columns shown to readers."""

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    section: str | None = None  # key whose change adds a rule in LaTeX

    @cached_property
    def shown(self) -> tuple[Column, ...]:
        """The columns that are not entirely empty."""
        return tuple(column for column in self.columns if any(column.text(row) != NOTHING for row in self.rows))

    def markdown(self) -> str:
        """A GitHub-flavored markdown table."""
        head = [column.title for column in self.shown]
        rule = [":--" if column.left else "--:" for column in self.shown]
        body = [[column.text(row).replace("|", "\\|") for column in self.shown] for row in self.rows]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, rule, *body])

    def tex(self) -> str:
        """A LaTeX tabular with booktabs rules, no wider than the text: long columns of words wrap; wider tables are shrunk."""
        texts = [[column.text(row) for row in self.rows] for column in self.shown]
        align = "".join(_align(column, cells) for column, cells in zip(self.shown, texts, strict=True))
        head = " & ".join(escape_tex(column.title) for column in self.shown)
        out = [f"% {self.caption}", r"% needs \usepackage{booktabs,array,graphicx}", r"{\footnotesize\setlength\tabcolsep{3pt}%"]
        out += [
            r"\resizebox{\ifdim\width>0.98\linewidth 0.98\linewidth\else\width\fi}{!}{%",
            f"\\begin{{tabular}}{{{align}}}",
            r"\toprule",
        ]
        out += [f"{head} \\\\", r"\midrule"]
        for i, row in enumerate(self.rows):
            if i and self.section and row[self.section] != self.rows[i - 1][self.section]:
                out.append(r"\midrule")
            out.append(" & ".join(escape_tex(cells[i]) for cells in texts) + r" \\")
        return "\n".join([*out, r"\bottomrule", r"\end{tabular}}}", ""])

    def csv(self) -> str:
        """Raw values at full precision as csv; missing values are empty."""
        out = io.StringIO()
        keys = list(self.rows[0]) if self.rows else []
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(keys)
        for row in self.rows:
            writer.writerow(["" if _is_nan(row[key]) else row[key] for key in keys])
        return out.getvalue()


def _align(column: Column, cells: list[str]) -> str:
    """The LaTeX column type: l, r, or a paragraph for words wider than a fifth of the text."""
    longest = max((len(text) for text in cells), default=0)
    if not column.left or longest <= MAX_WORDS:
        return "l" if column.left else "r"
    width = min(4.5, 1.9 + longest / 60)
    return f">{{\\raggedright\\arraybackslash\\hspace{{0pt}}}}p{{{width:.1f}cm}}"


def word(key: str, title: str) -> Column:
    """A column of words."""
    return Column(title, lambda row: str(row[key]) or NOTHING, left=True, key=key)


def number(key: str, title: str, digits: int = 3) -> Column:
    """A column of numbers."""
    return Column(title, lambda row: plain(_number(row, key), digits), key=key)


def estimate(key: str, title: str, digits: int = 3, *, sign: bool = False) -> Column:
    """A column "value [low, high]" from row[key], row[key_low], row[key_high]; notes if row["n"] seeds are too few."""

    def text(row: Row) -> str:
        value, low, high, n = (_number(row, name) for name in (key, f"{key}_low", f"{key}_high", "n"))
        if _is_nan(value):
            return NOTHING
        shown = ("+" if sign and value > 0 else "") + plain(value, digits)
        if _is_nan(low):
            return f"{shown} (n = {n} < {MIN_RUNS})" if n < MIN_RUNS else shown
        return f"{shown} {between(low, high, digits, sign=sign)}"

    return Column(title, text, key=key)


def interval_cells(key: str, interval: Interval) -> dict[str, float]:
    """The raw values for an `estimate` column: key, key_low, key_high."""
    return {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}


def between(low: float, high: float, digits: int = 3, *, sign: bool = False) -> str:
    """An interval "[low, high]"."""
    ends = (("+" if sign and end > 0 else "") + plain(end, digits) for end in (low, high))
    return f"[{', '.join(ends)}]"


def span(sizes: Sequence[int]) -> str:
    """The smallest and the largest number as text: "3 to 5", or "5" if they are equal."""
    return " to ".join(map(str, dict.fromkeys((min(sizes), max(sizes)))))


def percent(found: Interval) -> str:
    """A change as text: "+12 % [-3, +27]", or as a factor from eleven times on: "620 times [210, 1000]"."""
    if math.isnan(found.value):
        return NOTHING
    if found.value >= MANY:
        value, low, high = (1 + x / 100 for x in (found.value, found.low, found.high))
        return f"{plain(value, 2)} times" + ("" if math.isnan(low) else f" {between(low, high, 2)}")
    sign = "+" if found.value > 0 else ""
    interval = "" if math.isnan(found.low) else f" {between(found.low, found.high, 2, sign=True)}"
    return f"{sign}{plain(found.value, 2)} %{interval}"


def plain(value: float, digits: int = 3) -> str:
    """Format with `digits` significant digits, without an exponent if legible: 2383, 41.2, 0.00973, 1.2e-05."""
    if _is_nan(value):
        return NOTHING
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞"
    if value == 0 or isinstance(value, int):
        return str(int(value))
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def escape_tex(text: str) -> str:
    """Escape text for LaTeX; a number's hyphen becomes a minus sign."""
    escaped = "".join(_TEX.get(character, character) for character in text)
    return re.sub(r"(?<![\w.-])-(?=[\d$])", "$-$", escaped)


def _number(row: Row, key: str) -> float:
    value = row[key]
    assert not isinstance(value, str), f"column {key} has words"
    return value


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
