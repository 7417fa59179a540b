"""A run's columns: the packaged ones, those of its reward terms, and the metrics that its config declares."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rgpo.errors import ConfigError, require
from rgpo.runtime.schema import EVALUATED, GLOSSARY, ROLLOUTS, SAMPLES, Metric


def glossary(config: Mapping[str, object]) -> dict[str, Metric]:
    """The packaged metrics, those of the reward terms, and those that the config declares.

    A declaration has the form ``metrics: {group/name: {unit: ..., meaning: ...}}``.

    Raises: ConfigError if a declaration is malformed, or if it or a reward term redefines a packaged metric.
    """
    own = {} if config.get("metrics") is None else config["metrics"]
    if not isinstance(own, Mapping):
        raise ConfigError(f"metrics={own}: must map names to {{unit: ..., meaning: ...}}.")
    found = GLOSSARY | _reward_metrics(config)
    return found | {str(name): _declared(str(name), entry) for name, entry in own.items()}


def reward_names(config: Mapping[str, object]) -> list[str]:
    """Names of a run's reward terms; [] if the reward is the reward model alone."""
    task = config.get("task")
    return term_names(task.get("reward")) if isinstance(task, Mapping) else []


def term_names(terms: object) -> list[str]:
    """Names of the terms in the value of task.reward."""
    return [str(term.get("name")) for term in terms if isinstance(term, Mapping)] if isinstance(terms, list) else []


def sample_columns(config: Mapping[str, object]) -> dict[str, str]:
    """Columns of a run's samples.parquet: the packaged ones and one per reward term."""
    return SAMPLES | {f"reward/{name}": "number" for name in reward_names(config)}


def rollout_columns(config: Mapping[str, object]) -> dict[str, str]:
    """Columns of a run's rollouts.parquet: the packaged ones and one per reward term; {} if the run does not write the file."""
    task = config.get("task")
    wanted = isinstance(task, Mapping) and bool(task.get("log_rollouts_every"))
    return ROLLOUTS | {f"reward/{name}": "number" for name in reward_names(config)} if wanted else {}


def _reward_metrics(config: Mapping[str, object]) -> dict[str, Metric]:
    """The metrics of the reward terms.

    Raises: ConfigError if a term's name would redefine another metric.
    """
    found: dict[str, Metric] = {}
    for name in dict.fromkeys(reward_names(config)):
        term = f"the term {name} of the reward, unweighted,"
        made = {
            f"reward/{name}_mean": Metric("score", f"mean of {term} over the iteration's completions"),
            f"reward/{name}_std": Metric("score", f"standard deviation of {term} over the same"),
            **{
                f"reward/eval_{name}{what}": Metric("score", f"{meaning} of {term} on held-out prompts, after the update")
                for what, meaning in EVALUATED.items()
            },
        }
        require(not made.keys() & (GLOSSARY.keys() | found), "task.reward.name", name, "names a packaged metric; choose another.")
        found |= made
    return found


def _declared(name: str, entry: object) -> Metric:
    key = f"metrics.{name}"
    named = re.fullmatch(r"[\w.-]+(/[\w.-]+)+", name) is not None
    require(named, key, entry, "the name must be group/name, of letters, digits, _, . and -.")
    require(name not in GLOSSARY, key, entry, "is a packaged metric; choose another name.")
    fields = dict(entry) if isinstance(entry, Mapping) else {}
    complete = set(fields) == {"unit", "meaning"} and all(isinstance(x, str) and x.strip() for x in fields.values())
    require(complete, key, entry, "must be {unit: ..., meaning: ...}, two texts.")
    return Metric(fields["unit"], fields["meaning"])
