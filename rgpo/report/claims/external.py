"""Published numbers: results/external/*.yaml, with value, spread, seeds, source, protocol and license."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rgpo.errors import ConfigError, close_matches, require
from rgpo.report.claims.typed import fill, shown
from rgpo.report.read.run import Problem
from rgpo.report.stats.bootstrap import MIN_RUNS
from rgpo.report.stats.independent import Summary
from rgpo.runtime.reader import Unreadable, printable, read_yaml
from rgpo.runtime.schema import GLOSSARY

FOLDER = "external"  # inside results_dir
MAX_N, LARGEST = 1_000_000, 1e100
NOT_READ = (".yml", ".parquet", ".csv", ".json")  # files reported as ignored, since only .yaml is read


@dataclass(frozen=True)
class Number:
    """A published number for a task: mean and standard deviation (null: not published) over n runs."""

    value: float
    n: int
    sd: float | None = None


@dataclass(frozen=True)
class Source:
    """A file in results/external: arm -> task -> number, with their origin."""

    source: str
    url: str
    protocol: str
    license: str
    metric: str
    arms: dict[str, dict[str, object]]
    differs: str = ""  # differences from our protocol, or ""
    steps: int | None = None


@dataclass(frozen=True)
class Anchor:
    """A published number with its source."""

    value: float
    sd: float
    n: int
    metric: str = "return/train_mean"
    source: str = ""
    differs: str = ""  # differences between its protocol and ours
    steps: int | None = None  # training steps

    @property
    def summary(self) -> Summary:
        """The number as a sample; the standard deviation is nan if not published."""
        return Summary(self.value, self.sd, self.n)

    @property
    def why_not(self) -> str:
        """Why a relative change from it has no interval, or ""."""
        if self.value == 0:
            return "is 0, of which nothing is a percentage"
        return "" if self.n >= MIN_RUNS and math.isfinite(self.sd) else f"has no spread over at least {MIN_RUNS} runs"


Anchors = Mapping[str, Mapping[str, Mapping[str, Anchor]]]  # file -> arm -> task -> number


def read_external(results_dir: Path) -> tuple[dict[str, dict[str, dict[str, Anchor]]], list[Problem]]:
    """Read file -> arm -> task -> number; an invalid file becomes a problem and has no numbers.

    Tasks have our names, which include the environment's version: "hopper" is Hopper-v4; "hopper (v3)" is another task.
    """
    found: dict[str, dict[str, dict[str, Anchor]]] = {}
    problems = []
    folder = results_dir / FOLDER
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = f"{FOLDER}/{path.name}"
        if path.suffix in NOT_READ and not path.name.startswith("."):
            problems.append(Problem(name, "only .yaml files are read; `rgpo-report import` makes one; the file is left out"))
        if path.suffix != ".yaml" or path.name.startswith("."):
            continue
        try:
            found[path.stem] = anchors_of(read_yaml(path), name)
        except (ConfigError, Unreadable) as error:
            problems.append(Problem(name, f"{printable(str(error))}; the file is left out"))
            found[path.stem] = {}
    return found, problems


def anchors_of(node: object, name: str) -> dict[str, dict[str, Anchor]]:
    """arm -> task -> number from a file's contents; name: the file's, for errors.

    Raises: ConfigError if the contents are invalid.
    """
    source = fill(Source, node, f"{name}: ")
    _check(source, name)
    return {arm: _anchors(source, arm, name) for arm in source.arms}


def _check(source: Source, name: str) -> None:
    """Raises: ConfigError if the source or license is empty, or if metric or steps are invalid."""
    for key in ("source", "license"):
        require(bool(getattr(source, key).strip()), f"{name}: {key}", "", "it is empty; a number without it is of no use")
    if source.metric not in GLOSSARY:
        near = close_matches(source.metric, GLOSSARY) or " Give one of rgpo/runtime/schema.py, such as return/train_mean."
        raise ConfigError(f"{name}: metric={shown(source.metric)}: there is no such metric.{near}")
    require(source.steps is None or source.steps > 0, f"{name}: steps", shown(source.steps), "give a number above 0, or null")


def _anchors(source: Source, arm: str, name: str) -> dict[str, Anchor]:
    """task -> number for one arm."""
    return {task: _anchor(node, source, f"{name}: arms.{arm}.{task}.") for task, node in source.arms[arm].items()}


def _anchor(node: object, source: Source, where: str) -> Anchor:
    number = fill(Number, node, where)
    require(1 <= number.n <= MAX_N, f"{where}n", number.n, f"give 1 to {MAX_N:,} runs")
    require(number.sd is None or number.sd >= 0, f"{where}sd", number.sd, "give a spread of 0 or more, or null")
    fits = abs(number.value) < LARGEST and (number.sd or 0.0) < LARGEST
    require(fits, f"{where}value", number.value, f"give numbers below {LARGEST:g}")
    sd = float("nan") if number.sd is None else number.sd
    return Anchor(number.value, sd, number.n, source.metric, source.source, source.differs, source.steps)
