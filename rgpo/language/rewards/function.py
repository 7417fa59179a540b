"""Rewards: a weighted sum of the user's functions and the source's reward model, from which the policy learns.

A function is called with keyword arguments prompts and completions (lists of N texts) and the columns of the data (lists of N
values, None where a row lacks it), limited to its parameters. It returns N numbers; higher is better.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from rgpo import distributed
from rgpo.core.ranges import FINITE, accept, check_fields
from rgpo.core.rollout import Array
from rgpo.errors import NonFiniteError, described, require
from rgpo.language.assets import Prompt, RewardFunction, require_finite_scores

KEY = "task.reward"
MODEL = "reward_model"  # instead of a function: the source's reward model
NAME = accept(lambda name: bool(name) and name.replace("_", "").isalnum(), "must consist of letters, digits and _.")
RESERVED = ("prompts", "completions")


class RewardError(Exception):
    """A reward function raised an exception or did not return one number per completion."""


@dataclass(frozen=True, kw_only=True)
class Reward:
    """A reward term: weight times the function's value or, if function is null, weight times the reward model's score."""

    function: Callable[..., object] | None
    weight: float = field(metadata=FINITE)
    name: str = field(metadata=NAME)  # used in metrics and samples

    def __post_init__(self) -> None:
        check_fields(self, KEY)

    @property
    def place(self) -> str:
        """The function's file and name, for messages."""
        assert self.function is not None
        return f"{Path(inspect.getfile(self.function)).name}:{self.function.__name__}"

    @property
    def sha256(self) -> str:
        """Digest of the function's file."""
        assert self.function is not None
        return hashlib.sha256(Path(inspect.getfile(self.function)).read_bytes()).hexdigest()


def parameters(function: Callable[..., object]) -> tuple[set[str], set[str], bool]:
    """Names of a function's parameters, names of those without a default, and whether it accepts any keyword."""
    found = inspect.signature(function).parameters.values()
    named = [p for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = {p.name for p in found if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return {p.name for p in named}, required, any(p.kind is p.VAR_KEYWORD for p in found)


class Rewards:
    """The reward terms of a run; without terms, the source's reward model with weight 1.

    Raises: ConfigError if a function requires a column that the data lack.
    """

    def __init__(self, terms: Sequence[Reward], reward_model: RewardFunction | None, prompts: Sequence[Prompt]) -> None:
        self.named = bool(terms)
        self.terms = list(terms) or [Reward(function=None, weight=1.0, name=MODEL)]
        self.reward_model = reward_model
        columns = {name for prompt in prompts for name in prompt.columns}
        for term in self.terms:
            if term.function is not None:
                self._require_columns(term, columns)

    @staticmethod
    def _require_columns(term: Reward, columns: set[str]) -> None:
        assert term.function is not None
        _, required, _ = parameters(term.function)
        missing = sorted(required - columns - set(RESERVED))
        listed = ", ".join(sorted({*columns, *RESERVED}))
        require(not missing, KEY, term.place, f"needs {', '.join(missing)}, which the data lack; a function gets {listed}.")

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> tuple[Array, dict[str, Array]]:
        """The weighted sum (N,) and the unweighted terms by name ({} without named terms); each process scores its own slice.

        Raises: RewardError if a function fails; NonFiniteError if a score is NaN or infinite.
        """
        mine = distributed.local_slice(prompts)
        parts = {
            term.name: np.concatenate(distributed.all_gather(self._score(term, prompts[mine], texts[mine])))
            for term in self.terms
        }
        total: Array = np.sum([term.weight * parts[term.name] for term in self.terms if term.weight], axis=0)
        return total, parts if self.named else {}

    def _score(self, term: Reward, prompts: Sequence[Prompt], texts: Sequence[str]) -> Array:
        if not len(texts):
            return np.zeros(0)
        if term.function is not None:
            return call(term, prompts, texts)
        assert self.reward_model is not None
        scores = self.reward_model([prompt.text for prompt in prompts], texts)
        return require_finite_scores(scores, texts, "the reward model")


def call(term: Reward, prompts: Sequence[Prompt], texts: Sequence[str]) -> Array:
    """Call a reward function and return its values (N,).

    Raises: RewardError if it raises an exception or does not return N numbers; NonFiniteError if one is NaN or infinite.
    """
    function, place = term.function, term.place
    assert function is not None
    names, _, anything = parameters(function)
    columns = {name for prompt in prompts for name in prompt.columns}
    columns = columns if anything else columns | (names - set(RESERVED))
    given: dict[str, list[object]] = {
        name: [prompt.columns.get(name) for prompt in prompts]
        for name in sorted(columns)
        if anything or any(name in prompt.columns for prompt in prompts)
    }
    given |= {"prompts": [str(prompt.text) for prompt in prompts], "completions": list(texts)}
    try:
        found = function(**{name: values for name, values in given.items() if anything or name in names})
    except Exception as error:  # a user's function may raise anything
        raise RewardError(f"{KEY}={place}: raised {described(error)}; fix the function.") from error
    return _to_scores(found, place, texts)


def _to_scores(found: object, place: str, texts: Sequence[str]) -> Array:
    remedy = "return one number per completion"
    if not isinstance(found, list | tuple) and getattr(found, "ndim", 0) == 1:  # an array or a tensor
        found = list(cast(Iterable[object], found))
    if not isinstance(found, list | tuple):
        shape = f" of shape {tuple(found.shape)}" if hasattr(found, "shape") else ""
        raise RewardError(f"{KEY}={place}: returned {_kind(found)}{shape} in place of a list; {remedy}.")
    if len(found) != len(texts):
        raise RewardError(f"{KEY}={place}: returned {len(found)} values for {len(texts)} completions; {remedy}.")
    scores = np.zeros(len(found))
    for i, value in enumerate(found):
        try:
            if isinstance(value, str | bytes | complex) or value is None:
                raise TypeError
            scores[i] = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            raise RewardError(f"{KEY}={place}: returned {_kind(value)} for completion {i}; {remedy}.") from None
        if not math.isfinite(scores[i]):
            text = texts[i][-80:]
            raise NonFiniteError(f"{KEY}={place}: returned {scores[i]} for the completion that ends in {text!r}; {remedy}.")
    return scores


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def check_terms(terms: Sequence[Reward]) -> None:
    """Raises: ConfigError if two terms have the same name, or if all weights are 0."""
    names = Counter(term.name for term in terms)
    twice = [name for name, count in names.items() if count > 1]
    require(not twice, KEY, ",".join(names), f"two terms are named {''.join(twice[:1])}; give one of them another name.")
    weighted = not terms or any(term.weight for term in terms)
    require(weighted, f"{KEY}.weight", 0, "every term has weight 0, so that nothing is learned; give one another weight.")


def needs_reward_model(terms: Sequence[Reward]) -> bool:
    """True if the source's reward model is a term, or if there are no terms."""
    return not terms or any(term.function is None for term in terms)


def describe(parts: Mapping[str, Array]) -> dict[str, float]:
    """Mean and standard deviation of each reward term."""
    means = {f"reward/{name}_mean": float(score.mean()) for name, score in parts.items()}
    return means | {f"reward/{name}_std": float(score.std()) for name, score in parts.items()}
