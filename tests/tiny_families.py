"""A tiny configuration of every family of causal language models that the installed transformers has."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from transformers import PreTrainedConfig

VOCABULARY, CONTEXT = 280, 64
SMALL: list[tuple[str, int]] = [  # names of whole numbers in configs -> the most that a tiny one has; the first match counts
    (r"vocab_size", VOCABULARY),
    (r"max_position|n_positions|max_seq|n_ctx|max_target_positions|context_length|original_max_position", CONTEXT),
    (r"index_topk|indexer_budget", CONTEXT),  # of the tokens that sparse attention keeps: all
    (r"sliding_window|attention_window|window_size|local_window|attention_chunk_size|chunk_size", 8),
    (r"^(num_hidden_layers|n_layers?|num_layers|(num_)?(en|de)coder_layers)$", 2),
    (r"num_key_value_heads|kv_n_heads|num_kv_heads|n_head_kv|num_global_key_value_heads", 2),
    (r"heads?$|rotary_dim", 4),
    (r"head_dim|kv_channels|qk_nope|qk_rope|v_head|attention_head_size|lora_rank|q_rank|rank$|state_size|d_state", 8),
    (r"(experts_per_tok|top_k|topk|num_selected_experts|moe_k|topk_group)$", 2),
    (r"experts?$|num_local_experts|moe_num_experts", 4),
    (r"n_groups?$", 1),
    (r"intermediate|ffn|d_inner|n_inner|d_ff|mlp_dim|feed_forward", 32),
    (r"hidden_size|d_model|n_embd|embed_dim|embedding_size|lru_width|emb_dim|d_embedding|word_embed_proj_dim", 32),
    (r"image_size", 28),
    (r"patch_size", 14),
]
ABSENT = {"head_dim": 8, "num_key_value_heads": 2, "ffn_hidden_size": 32}  # in place of null
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "decoder_start_token_id": 0, "is_decoder": True}
EXCEPTIONS: dict[str, dict[str, Any]] = {  # what the sizes above do not make consistent
    "AXK1Config": {"topk_group": 1, "n_group": 1},
    "BambaConfig": {"attn_layer_indices": [1]},
    "DeepseekV2Config": {"num_experts_per_tok": 2, "topk_group": 1},
    "Dots1Config": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 1]]},
    "Gemma3nTextConfig": {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0], "hidden_size_per_layer_input": 8},
    "GraniteMoeHybridConfig": {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2},
    "JambaConfig": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2, "num_dense_layers": 1},
    "Mamba2Config": {"num_heads": 8, "head_dim": 8},
    "Qwen4ExpTextConfig": {
        **{"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 64, "indexer_compress_ratio": 2},
        **{"ngram_vocab_size_base": 100, "hc_lowrank": 8},
    },
    "RecurrentGemmaConfig": {"num_hidden_layers": 3, "lru_width": 32},
    "ReformerConfig": {"axial_pos_embds": False, "attn_layers": ["local", "local"], "local_attn_chunk_length": 8},
    "XmodConfig": {"languages": ["en"], "default_language": "en"},
    "ZambaConfig": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3},
    "Zamba2Config": {
        **{"layer_types": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3, "hybrid_layer_ids": [1, 2]},
        **{"n_mamba_heads": 8, "mamba_headdim": 8},
    },
}


def tiny_settings(kind: type[PreTrainedConfig]) -> dict[str, Any]:
    """Arguments of a config class that make its model small; parts of a composite config are small, too."""
    if dataclasses.is_dataclass(kind):
        given = {field.name: field.default for field in dataclasses.fields(kind)}
    else:
        given = {name: p.default for name, p in inspect.signature(kind.__init__).parameters.items()}
    found = {name: small for name, value in given.items() if (small := _shrunk(name, value)) is not None}
    default = kind()
    for name, part in vars(default).items():
        if isinstance(part, PreTrainedConfig):
            found[name] = {"model_type": part.model_type, **tiny_settings(type(part))}
    kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or ())) if "layer_types" in given else []
    if kinds:  # one layer of each kind, but at least two
        layers = kinds if len(kinds) > 1 else kinds * 2
        depth = next(name for name in ("num_hidden_layers", "num_layers") if name in given)
        found |= {"layer_types": layers, depth: len(layers)}
    if "kv_lora_rank" in given:  # latent attention has as many keys as queries
        found["num_key_value_heads"] = 4
    return found | {name: value for name, value in IDS.items() if name in given} | EXCEPTIONS.get(kind.__name__, {})


def _shrunk(name: str, value: object) -> int | None:
    """The small number in place of a config's default, or None to keep it."""
    if value is None:
        return ABSENT.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    small = next((small for pattern, small in SMALL if re.search(pattern, name)), value)
    return small if value > small or small == VOCABULARY else None
