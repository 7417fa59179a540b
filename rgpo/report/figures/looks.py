"""The look of every label: its own color, dashes and marker, the same in all figures and on the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

Dashes = Literal["-"] | tuple[float, Sequence[float]]
SOLID: Dashes = "-"
DASHED, DOTTED, DASHDOT = (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2))


class Line(NamedTuple):
    """The look of one label; colors have a contrast of at least 3 on white and on the page's dark background."""

    color: str
    dashes: Dashes
    marker: str
    dark: str = "#C8C8C8"  # color on a dark background


KNOWN = {
    "ppo": Line("#000000", SOLID, "o", "#F2F2F2"),
    "ppo_kl": Line("#7F7F7F", DASHED, "s", "#A0A0A0"),
    "trpo": Line("#00805D", DASHDOT, "D", "#2FC797"),
    "rgpo": Line("#D5480A", SOLID, "^", "#FF7A3D"),
    "rgpo_literal": Line("#A87400", DASHED, "v", "#E8B23A"),
    "rgpo_sign_aware": Line("#0060B0", SOLID, "P", "#5AA9FF"),
    "reinforce": Line("#C04A98", DOTTED, "X", "#F08CD4"),
    "awr": Line("#7A4A1E", DASHED, "*", "#C79A6B"),
    "grpo": Line("#1A8FC4", SOLID, "<", "#7BD4FF"),
    "rloo": Line("#6A3FC0", DASHDOT, ">", "#AE92FF"),
    "dapo": Line("#7E8400", DASHED, "d", "#CDD24A"),
    "gspo": Line("#B01050", DOTTED, "h", "#FF6FA0"),
}
_OTHERS = [  # for other algorithms and for variants
    Line(light, dashes, marker, dark)
    for dashes in (SOLID, DASHED, DOTTED, DASHDOT)
    for (light, dark), marker in zip(
        (
            ("#00757F", "#4FD6E0"),
            ("#5B2333", "#D38FA2"),
            ("#3D5C00", "#9CCB4A"),
            ("#2B3F8C", "#8DA2F5"),
            ("#E0559A", "#FFA6CC"),
            ("#8C6BB1", "#D3B8F0"),
            ("#C46A4A", "#F2B09A"),
            ("#4A6B80", "#9DBBD0"),
        ),
        "dhpH8*<>",
        strict=True,
    )
]


def algorithm_lines(algos: Iterable[str]) -> dict[str, Line]:
    """The line of every algorithm: its own or, in alphabetical order, the next free one."""
    names = sorted(set(algos))
    others = [name for name in names if name not in KNOWN]
    return {name: KNOWN[name] if name in KNOWN else _OTHERS[others.index(name) % len(_OTHERS)] for name in names}


def assign(labels: Sequence[tuple[str, str]], base: Mapping[str, Line]) -> dict[str, Line]:
    """The line of every label, given (algorithm, label) in order.

    An algorithm's first label has the algorithm's own line; others get colors that are not yet used, as long as there are any.
    """
    algos = dict.fromkeys(algo for algo, _ in labels)
    lines: dict[str, Line] = {}
    taken = {base[algo].color for algo in algos}
    free = [line for line in (*_OTHERS, *KNOWN.values()) if line.color not in taken] or list(_OTHERS)
    place = 0
    for algo in algos:
        for i, name in enumerate(dict.fromkeys(label for other, label in labels if other == algo)):
            lines[name] = base[algo] if i == 0 else free[place % len(free)]
            place += i > 0
    return lines
