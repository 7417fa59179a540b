"""Pairs of completions for the same held-out prompt, before and after training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_type_hints

from rgpo.report.read.groups import Group
from rgpo.report.read.rows import read_samples, sample_files
from rgpo.report.read.run import Problem, Run
from rgpo.runtime.reader import Unreadable, printable

MAX_CHARACTERS = 4_000  # most characters of a text on the page
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # control and direction characters


class Sample(NamedTuple):
    """A row of samples.parquet: some of the columns in rgpo.runtime.schema.SAMPLES, and the reward terms."""

    iteration: int
    prompt_id: int
    prompt: str
    completion: str
    proxy: float
    gold: float
    kl_ref: float
    length: int
    terms: Mapping[str, float]  # name -> unweighted score; {} if there is only the reward model


class Pair(NamedTuple):
    """A prompt's completions by the reference policy (iteration 0) and by the last sampled policy."""

    label: str
    task: str
    seed: int
    before: Sample
    after: Sample


def pairs(groups: Sequence[Group], limit: int) -> tuple[list[Pair], list[Problem]]:
    """Up to `limit` pairs, equally many per run, for the lowest prompt ids, which are the same in every run."""
    runs = [(group, run) for group in groups for run in group.used if sample_files(run.folder)]
    each = max(1, limit // len(runs)) if runs else 0
    found: list[Pair] = []
    problems = []
    for group, run in runs:
        try:
            found += _of_run(group.label, run, each)
        except Exception as error:  # anything unusual must not affect other runs
            why = str(error) if isinstance(error, Unreadable) else f"{type(error).__name__}: {printable(str(error))}"
            problems.append(Problem(run.where, f"{why}; its completions are left out"))
    return found[:limit], problems


def _of_run(label: str, run: Run, limit: int) -> list[Pair]:
    terms = {name: f"reward/{name}" for name in run.reward_terms}
    shared = {name: kind for name, kind in get_type_hints(Sample).items() if name != "terms"}
    records = read_samples(run.folder, shared | dict.fromkeys(terms.values(), float))
    samples = [
        Sample(**{key: record[key] for key in shared}, terms={name: record[key] for name, key in terms.items()})
        for record in records
    ]
    last = max((sample.iteration for sample in samples), default=0)
    at = {(sample.iteration, sample.prompt_id): sample for sample in samples}
    prompts = sorted(prompt for i, prompt in at if i == 0 and (last, prompt) in at) if last else []
    return [Pair(label, run.task, run.seed, _legible(at[0, p]), _legible(at[last, p])) for p in prompts[:limit]]


def _legible(sample: Sample) -> Sample:
    return sample._replace(prompt=legible(sample.prompt), completion=legible(sample.completion))


def legible(text: str) -> str:
    """Text with invisible characters replaced, cut to MAX_CHARACTERS."""
    text = _INVISIBLE.sub("\N{REPLACEMENT CHARACTER}", text)
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} … ({len(text):,} characters)"
