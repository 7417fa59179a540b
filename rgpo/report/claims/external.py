"""Published numbers as data: results/external/*.yaml, each with value, spread, seeds, source, protocol and license."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rgpo.errors import ConfigError
from rgpo.report.claims.typed import fill
from rgpo.report.read.run import Problem
from rgpo.report.stats.independent import Summary
from rgpo.runtime.reader import Unreadable, printable, read_yaml

FOLDER = "external"  # of results_dir


@dataclass(frozen=True)
class Number:
    """One published number of one task: mean, standard deviation over n runs (null: not published)."""

    value: float
    n: int
    sd: float | None = None


@dataclass(frozen=True)
class Source:
    """A file of results/external: arm -> task -> number, and where they come from."""

    source: str
    url: str
    protocol: str
    license: str
    metric: str
    arms: dict[str, dict[str, object]]
    differs: str = ""  # from our protocol; "" if it is ours
    steps: int | None = None


@dataclass(frozen=True)
class Anchor:
    """A published number with its source."""

    value: float
    sd: float
    n: int
    source: str = ""
    differs: str = ""  # between its protocol and ours
    steps: int | None = None  # of training

    @property
    def summary(self) -> Summary:
        """The number as a sample; the standard deviation is nan where none was published."""
        return Summary(self.value, self.sd, self.n)


def read_external(results_dir: Path) -> tuple[dict[str, dict[str, dict[str, Anchor]]], list[Problem]]:
    """file -> arm -> task -> number; a damaged file becomes a problem and costs itself alone."""
    found: dict[str, dict[str, dict[str, Anchor]]] = {}
    problems = []
    for path in sorted((results_dir / FOLDER).glob("*.yaml")):
        name = f"{FOLDER}/{path.name}"
        try:
            node = fill(Source, read_yaml(path), f"{name}: ")
            found[path.stem] = {arm: _anchors(node, arm, name) for arm in node.arms}
        except (ConfigError, Unreadable) as error:
            problems.append(Problem(name, f"{printable(str(error))}; the file is left out"))
    return found, problems


def _anchors(source: Source, arm: str, name: str) -> dict[str, Anchor]:
    """task -> number of one arm."""
    return {task: _anchor(node, source, f"{name}: arms.{arm}.{task}.") for task, node in source.arms[arm].items()}


def _anchor(node: object, source: Source, where: str) -> Anchor:
    number = fill(Number, node, where)
    if number.n < 1 or (number.sd is not None and number.sd < 0):
        raise ConfigError(f"{where}n={number.n}: give at least one run, and a spread of 0 or more")
    return Anchor(
        number.value, float("nan") if number.sd is None else number.sd, number.n, source.source, source.differs, source.steps
    )
