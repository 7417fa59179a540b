"""The embedded scale's artifacts: built once per machine, kept in the cache, verified on every load.

    <cache>/embedded-<version>-<hash>/
      model/            language model and tokenizer (AutoModelForCausalLM, AutoTokenizer)
      reward_model/     reward model (AutoModelForSequenceClassification; its tokenizer appends eos)
      gold/             gold reward model; never used in training the policy
      prompts.json      train and heldout prompts
      report.json       sizes, accuracies with intervals, samples, seconds, versions, fingerprint
      stamp.json        recipe and sha256 of every file above but the report

The sentences are split into four disjoint sets: prompts, reward model, gold reward model, held out. The reward model is trained
on the mean rating by every second rater, the gold reward model on that by the other raters. Language model and tokenizer are
trained on the text of all but the held-out sentences, without ratings. The package includes the default recipe's weights
(pretrained.py); with another recipe, two builds with the same libraries on the same machine are equal bit for bit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rgpo.language.assets import Log
from rgpo.language.data.build_cache import BuildReport, artifact_folder, build_once
from rgpo.language.sources.embedded import corpus

if TYPE_CHECKING:
    from rgpo.language.sources.embedded.training import Recipe

VERSION = "1"  # part of the folder's name; increase it when the built artifacts change


@dataclass(frozen=True)
class Artifacts:
    """Folders and prompts; a prompt has 3 to 6 words, at most 8 tokens and no eos."""

    folder: Path
    model: Path
    reward_model: Path
    gold_reward_model: Path
    train_prompts: list[str]
    heldout_prompts: list[str]
    report: BuildReport


def load_artifacts(cache: Path, log: Log, recipe: Recipe | None = None, sha256: str = corpus.SHA256) -> Artifacts:
    """The artifacts for a recipe and the sentences with this sha256, built if they are not in the cache or damaged.

    Raises: ConfigError if the cache is not writable or the sentences cannot be downloaded.
    """
    from rgpo.language.sources.embedded.training import Recipe

    chosen = recipe or Recipe()
    settings = {"version": VERSION, "sdist": sha256, "recipe": chosen._asdict()}
    folder = artifact_folder(cache, f"embedded-{VERSION}", settings)

    def build(aside: Path, log: Log) -> BuildReport:
        from rgpo.language.sources.embedded.build import build

        log(f"embedded scale: building {folder} once")
        report = build(aside, corpus.read_sentences(corpus.fetch(cache, sha256)), chosen, log)
        accuracy, gold_accuracy = report["proxy"]["accuracy"], report["gold"]["accuracy"]
        log(
            f"embedded scale: held-out pairs ranked correctly: reward model {accuracy:.1%}, gold reward model {gold_accuracy:.1%}"
        )
        return report

    report = build_once(folder, settings, build, log, lock="embedded", what="embedded scale")
    prompts = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    return Artifacts(
        folder, folder / "model", folder / "reward_model", folder / "gold", prompts["train"], prompts["heldout"], report
    )
