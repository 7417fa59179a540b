"""The embedded scale's world: built once on this machine, kept in the cache, verified whenever it is loaded.

    <cache>/embedded-<version>-<recipe>/
      model/            language model and tokenizer (AutoModelForCausalLM, AutoTokenizer)
      reward_model/     proxy (AutoModelForSequenceClassification; its tokenizer appends eos)
      gold/             gold judge; no policy sees it
      prompts.json      train and heldout prompts
      report.json       sizes, accuracies with intervals, samples, seconds, versions, fingerprint
      stamp.json        recipe and sha256 of every file above but the report

Sentences fall into four disjoint sets: prompts, the proxy's, the gold judge's, held out. The proxy learns from every second
rater's mean rating of its sentences, the gold judge from the other raters' mean of its own. Language model and tokenizer read the
text of all but the held-out sentences, never a rating. Two builds with the same libraries on the same machine agree bit for bit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rgpo.language.data.build_cache import Say, build_once, named
from rgpo.language.rewards.reward_model import GoldJudge, ProxyReward
from rgpo.language.sources.embedded import corpus

if TYPE_CHECKING:
    from rgpo.language.sources.embedded.training import Recipe

__all__ = ["GoldJudge", "ProxyReward", "World", "load_world"]

VERSION = "1"  # of this code; another one builds another folder


@dataclass(frozen=True)
class World:
    """Where everything lies, and the prompts; a prompt is 3 to 6 words, at most 8 tokens and no eos."""

    folder: Path
    model: Path
    reward_model: Path
    gold: Path
    train_prompts: list[str]
    heldout_prompts: list[str]
    report: dict[str, Any]


def load_world(cache: Path, say: Say, recipe: Recipe | None = None, sha256: str = corpus.SHA256) -> World:
    """The world of a recipe and of the sentences with that sha256, built if the cache has none or a damaged one.

    ConfigError if the cache cannot be written or the sentences cannot be had.
    """
    from rgpo.language.sources.embedded.training import Recipe

    chosen = recipe or Recipe()
    wanted = {"version": VERSION, "sdist": sha256, "recipe": chosen._asdict()}
    folder = named(cache, f"embedded-{VERSION}", wanted)

    def build(aside: Path) -> dict[str, Any]:
        from rgpo.language.sources.embedded.build import build

        say(f"embedded world: building {folder} once, about two minutes on one core")
        report = build(aside, corpus.read_sentences(corpus.fetch(cache, sha256)), chosen, say)
        proxy, gold = report["proxy"]["accuracy"], report["gold"]["accuracy"]
        say(f"embedded world: held-out pairs right: proxy {proxy:.1%}, gold judge {gold:.1%}")
        return report

    report = build_once(folder, wanted, build, say, lock="embedded", what="embedded world")
    prompts = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    return World(folder, folder / "model", folder / "reward_model", folder / "gold", prompts["train"], prompts["heldout"], report)
