"""The search space of an Optuna search: hydra's sweep syntax converted to Optuna distributions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from rgpo.cli.overrides import Composer
from rgpo.cli.words import user_form
from rgpo.errors import ConfigError, first_line

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

NOT_SEARCHED = "hydra/sweeper=optuna: has nothing to search; give ranges, such as 'update.lr=tag(log,interval(1e-4,1e-2))'."


@dataclass(frozen=True)
class Space:
    """The fixed overrides and seeds shared by all trials, and the ranges that are searched."""

    fixed: tuple[str, ...]
    seeds: tuple[str, ...]
    ranges: Mapping[str, BaseDistribution]

    def words(self, values: Mapping[str, object]) -> list[list[str]]:
        """The overrides of a trial's runs, one list per seed."""
        own = [f"{key}={value}" for key, value in values.items()]
        return [[*self.fixed, *own, *([f"seed={seed}"] if seed else [])] for seed in self.seeds]

    def corners(self) -> list[dict[str, object]]:
        """Sets of values that together cover both ends of every range and every choice."""
        from optuna.distributions import CategoricalDistribution

        options = {
            key: list(x.choices) if isinstance(x, CategoricalDistribution) else [x.low, x.high] for key, x in self.ranges.items()
        }
        return [{key: x[k % len(x)] for key, x in options.items()} for k in range(max(map(len, options.values())))]


def space_of(composer: Composer, words: list[str]) -> Space:
    """The search space of a command line and its experiment; for a repeated key, the last override counts.

    Raises: ConfigError if there is no range, if Optuna cannot search one, or if seed is an interval or range.
    """
    items = {item.get_key_element(): item for item in composer.swept(words)}
    seeds = items.pop("seed", None)
    fixed = tuple(user_form(item) for item in items.values() if not item.is_sweep_override())
    ranges = {key: _distribution(item) for key, item in items.items() if item.is_sweep_override()}
    if not ranges:
        raise ConfigError(NOT_SEARCHED)
    if seeds is None:
        return Space(fixed, ("",), ranges)
    swept = seeds.is_discrete_sweep()
    if seeds.is_sweep_override() and not swept:
        raise ConfigError(f"{seeds.input_line}: is not searched; give seeds, such as seed=1,2,3.")
    return Space(fixed, tuple(seeds.sweep_string_iterator()) if swept else (str(seeds.value()),), ranges)


def _distribution(item: Override) -> BaseDistribution:
    """Categorical for choices, globs and ranges that are not of integers; integer or float for the others."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = item.value()
    try:
        if isinstance(value, IntervalSweep):
            log = "log" in value.tags
            if isinstance(value.start, int) and isinstance(value.end, int):
                return IntDistribution(value.start, value.end, log=log)
            return FloatDistribution(float(value.start or 0), float(value.end or 0), log=log)
        if isinstance(value, RangeSweep) and isinstance(value.step, int) and value.step > 0:
            points = list(value.range())
            if all(isinstance(x, int) for x in points):
                return IntDistribution(int(points[0]), int(points[-1]), step=value.step)
        return CategoricalDistribution(list(item.sweep_string_iterator()))
    except (ValueError, IndexError) as error:
        raise ConfigError(f"{item.input_line}: is not a range that optuna searches ({first_line(error)}).") from error
