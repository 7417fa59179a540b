"""Every family of causal language models in the installed transformers: the numbers of its own forward pass, or one sentence.

By default a seeded tenth of the families runs, beside those of special interest; RGPO_ALL_FAMILIES=1 runs all (a few minutes).
"""

from __future__ import annotations

import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import tiny_settings
from tiny_models import write_model
from tiny_policies import SAMPLING
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from rgpo.errors import ConfigError
from rgpo.language.policy.consistency import Consistency
from rgpo.language.policy.generation import completion_ids
from rgpo.language.policy.language_model import LanguageModel
from rgpo.language.policy.pretrained import checkpoint_layers, load_causal_lm
from rgpo.language.policy.rounding import accepted

FAMILIES = {kind.__name__: kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING}
NOT_TINY = {  # and why no tiny model of it can be made here
    "BltConfig": "tables of byte n-grams that no size of the config shrinks",
    "CohereCompassTextConfig": "its default config has no rotary settings for its own layers",
    "CpmAntConfig": "reads ids of its own prompts, outside the vocabulary",
    "DbrxConfig": "its attention config has no base of rotary positions",
    "Dots3NoteConfig": "its default config names layers by number",
    "Dots3NoteTextConfig": "its default config names layers by number",
    "Gemma3nConfig": "needs the package timm",
    "Gemma4AssistantConfig": "drafts for another model, whose cache it reads",
    "Gemma4UnifiedAssistantConfig": "drafts for another model, whose cache it reads",
    "MusicgenConfig": "predicts audio",
    "MusicgenMelodyConfig": "predicts audio",
    "ZambaConfig": "transformers cannot tie the weights of so few layers",
}
REFUSED = {  # and what is wrong with it
    "DogeConfig": "not causal",
    "Emu3Config": "AutoModelForCausalLM cannot load the part that it saves",
    "MllamaConfig": "AutoModelForCausalLM cannot load the part that it saves",
    "ProphetNetConfig": "no function of its last hidden states",
    "ReformerConfig": "no backward pass in eval mode",
    "XLMConfig": "not causal",
    "XLNetConfig": "not causal",
}
ALWAYS = (  # scaled and capped logits, narrow last states, composite configs, ALiBi, no positions, state spaces, latent attention
    *("GraniteConfig", "CohereConfig", "Gemma2Config", "OPTConfig", "Gemma3Config", "BloomConfig", "FalconConfig", "MptConfig"),
    *("Mamba2Config", "Starcoder2Config", "Qwen2Config", "LlamaConfig", "DeepseekV3Config", "Qwen3NextConfig", "DogeConfig"),
    *("RobertaConfig", "MixtralConfig"),
)
SHARE = set(random.Random(0).sample(sorted(FAMILIES), len(FAMILIES) // 10)) | set(ALWAYS)
CHOSEN = sorted(FAMILIES) if os.environ.get("RGPO_ALL_FAMILIES") else sorted(SHARE & FAMILIES.keys())
VARIANTS = {
    "opt-350m": ("OPTConfig", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "falcon-alibi": ("FalconConfig", {"alibi": True, "new_decoder_architecture": False}),
    "gemma-2-capped": ("Gemma2Config", {"final_logit_softcapping": 1.0}),
    "granite-scaled": ("GraniteConfig", {"logits_scaling": 3.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0}),
    "mistral-window": ("MistralConfig", {"sliding_window": 4}),
    "gpt2-scaled-by-layer": ("GPT2Config", {"scale_attn_by_inverse_layer_idx": True}),
    "bert-encoder": ("BertConfig", {"is_decoder": False}),
}


def write(folder: Path, family: str, **changes: Any) -> Path:
    """A random model of the family in the real format, with weights large enough for tokens to differ in probability."""
    config = FAMILIES[family](**tiny_settings(FAMILIES[family]) | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim > 1:
                    p.normal_(0, 0.2)
    write_model(folder)
    for file in ("config.json", "generation_config.json", "model.safetensors"):
        (folder / file).unlink(missing_ok=True)
    model.save_pretrained(folder)
    return folder


def check(folder: Path, refused: bool) -> None:
    """Rollout, log-probabilities and their gradient with recomputed layers equal those of the plain model, row by row."""
    logged: list[str] = []
    try:
        model, plain = (load_causal_lm(folder, dtype="float32", device="cpu", attn_implementation="eager")[0] for _ in range(2))
        model.requires_grad_(True)
        try:
            checkpoint_layers(model)
        except ConfigError as error:
            assert re.fullmatch(r"task\.gradient_checkpointing=True: a \w+ has no layers .* set it to false\.", str(error))
        policy = LanguageModel(model, SAMPLING, critic=True)
        Consistency(policy).run(logged.append)
    except ConfigError as error:
        message = str(error)
        assert refused and message.startswith("task.source.model=") and message.endswith(".") and "\n" not in message, message
        return
    assert not refused, f"{policy.batching}, {policy.layout}"
    completions = policy.generate([[5, 9, 30], [5, 9, 30], [7], [11, 12, 13, 14, 15]], torch.Generator().manual_seed(0))
    (batch,) = policy._micro_batches(completions, [[torch.arange(4)]])
    out = policy.forward(batch[0])
    logp_N = out.logp.new_zeros(len(out.logp)).index_copy(0, batch[0].tokens_n, out.logp)
    rows = []
    for row, ids in enumerate(completion_ids(completions)):
        text = completions.sequence_BS[row][completions.attention_mask_BS[row].bool()]
        logits = plain(input_ids=text[None], **accepted(plain, use_cache=False)).logits[0, -len(ids) - 1 : -1]
        logits = logits / SAMPLING.temperature
        rows.append(torch.log_softmax(logits, -1).gather(-1, torch.tensor(ids)[:, None])[:, 0])
    wanted, live = torch.cat(rows), completions.completion_mask_BT.bool()
    torch.testing.assert_close(completions.logp_BT[live], wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logp_N, wanted, rtol=1e-3, atol=1e-3)
    for p in plain.parameters():
        p.requires_grad_(True)
    wanted.sum().backward()
    logp_N.sum().backward()
    there = dict(plain.named_parameters())
    for name, p in model.named_parameters():
        other = there[name].grad
        if p.grad is None or other is None:
            assert (p.grad is None or not p.grad.any()) and (other is None or not other.any()), name
        else:
            scale = float(other.abs().max().clamp(min=1e-2))
            torch.testing.assert_close(
                p.grad / scale, other / scale, rtol=1e-2, atol=1e-2, msg=lambda text, n=name: f"{n}: {text}"
            )
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("family", CHOSEN)
def test_a_family_is_exact_or_refused_in_one_sentence(family: str, tmp_path: Path) -> None:
    if family in NOT_TINY:
        pytest.skip(NOT_TINY[family])
    check(write(tmp_path / "model", family), refused=family in REFUSED)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_within_a_family(name: str, tmp_path: Path) -> None:
    family, changes = VARIANTS[name]
    check(write(tmp_path / "model", family, **changes), refused=name == "bert-encoder")
