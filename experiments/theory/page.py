"""docs/theory.md from theory.md.j2: every number in it comes from the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import jinja2
import pandas as pd

TEMPLATE = Path(__file__).parent / "theory.md.j2"


def number(x: float, digits: int = 3) -> str:
    """Significant digits, without an exponent where it can be avoided."""
    if math.isnan(x):
        return "–"
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    text = f"{x:.{digits}g}" if 1e-4 <= abs(x) < 10**digits or x == 0 else f"{x:.{digits - 1}e}" if abs(x) < 1e-4 else f"{x:,.0f}"
    return text.replace("-", "−") if "e" not in text else text


def between(triple: tuple[float, float, float], digits: int = 3) -> str:
    """A number and its interval."""
    middle, low, high = triple
    interval = "" if math.isnan(low) else f" [{number(low, digits)}, {number(high, digits)}]"
    return number(middle, digits) + interval


def render(numbers: Mapping[str, object], verdicts: pd.DataFrame) -> str:
    """The page.

    Raises: jinja2.UndefinedError for a number that no experiment gives.
    """
    environment = jinja2.Environment(  # noqa: S701  # markdown of our own numbers, which autoescaping would spoil
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"n": number, "i": between}
    ours = sorted(claim for claim in set(verdicts.claim) if claim.endswith("(ours)"))
    text = environment.from_string(TEMPLATE.read_text()).render(**numbers, ours=ours, verdicts=verdicts.to_dict("records"))
    return text.rstrip() + "\n"
