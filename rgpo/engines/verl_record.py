"""Convert the log of a verl training, written with trainer.logger=[...,file], to a run folder for rgpo-report.

    python -m rgpo.engines.verl_record rgpo/gsm8k_1_5b.jsonl task=gsm8k algo=rgpo seed=1 [results_dir=results] [name=engines]

One row is one step of verl. verl itself is not needed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rgpo.engines.record import RunRecord
from rgpo.errors import ConfigError

NAMES = {  # verl's name -> our metric; those of our loss have the prefix actor/
    "actor/pg_loss": "loss/policy",
    "actor/grad_norm": "grad/norm_mean",
    "actor/entropy": "policy/entropy",
    "actor/entropy_loss": "policy/entropy",
    "critic/score/mean": "reward/train_mean",
    "critic/vf_loss": "loss/value",
    "critic/vf_explained_var": "value/explained_variance",
    "critic/advantages/mean": "advantage/mean",
    "response_length/mean": "language/length_mean",
    "response_length/clip_ratio": "language/truncated_share",
    "timing_s/gen": "time/generate_s",
    "timing_s/update_actor": "time/update_s",
    "timing_s/step": "time/iteration_s",
    "training/rollout_probs_diff_mean": "sampler/log_ratio_abs_mean",
}
OPTIONS = ("task", "algo", "seed", "results_dir", "name")


def convert(log: Path, *, task: str, algo: str, seed: int, results_dir: str = "results", name: str = "engines") -> Path:
    """Convert a log file of verl; returns the run folder.

    Raises: ConfigError if the file cannot be read or has no training steps, or if the run already exists.
    """
    rows = [(step, row) for step, row in _rows(log) if "loss/policy" in row]
    if not rows:
        raise ConfigError(f"{log}: has no training steps; log them with trainer.logger=[console,file].")
    record = RunRecord(
        engine="verl",
        task=task,
        algo=algo,
        seed=seed,
        settings={"log": log.stem},
        num_iterations=len(rows),
        results_dir=results_dir,
        name=name,
    )
    record.start()
    for step, row in rows:
        record.log(step, row)
    return record.finish()


def _rows(log: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Step and metrics, under our names, of each line.

    Raises: ConfigError if the file cannot be read or a line is not a step.
    """
    try:
        lines = log.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{log}: cannot be read ({error}); give the jsonl file of verl's file logger.") from error
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
            step, data = int(found["step"]), dict(found["data"])
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{log}: line {number} is no step of verl's file logger; remove it.") from error
        metrics = {NAMES.get(key, key.removeprefix("actor/")): x for key, x in data.items()}
        yield step, {key: float(x) for key, x in metrics.items() if isinstance(x, int | float)}


def main(words: list[str]) -> int:
    """Run the command; returns exit code 2 if the arguments or the log cannot be used."""
    try:
        options = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        unknown = [word for word in words[1:] if word.partition("=")[0] not in OPTIONS or "=" not in word]
        if not words or unknown or not {"task", "algo", "seed"} <= options.keys() or not options["seed"].isdigit():
            raise ConfigError(f"{' '.join(words)}: give FILE.jsonl task=NAME algo=NAME seed=NUMBER [results_dir=...] [name=...].")
        seed = int(options.pop("seed"))
        print(convert(Path(words[0]), seed=seed, **options))
    except ConfigError as error:
        print(f"verl_record: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
