"""Models in the GGUF format, as llama.cpp writes them."""

from __future__ import annotations

from pathlib import Path

from tiny_models import TEMPLATE
from transformers import LlamaForCausalLM


def write_gguf(file: Path, model: LlamaForCausalLM, tokens: list[str], merges: list[str]) -> None:
    """A Llama as llama.cpp writes it: q and k rows permuted, a byte-BPE vocabulary, eos as padding."""
    import gguf

    config = model.config
    out = gguf.GGUFWriter(file, "llama")
    out.add_block_count(config.num_hidden_layers)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_rope_dimension_count(config.head_dim)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_vocab_size(config.vocab_size)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("smollm")
    out.add_token_list(tokens)
    out.add_token_merges(merges)
    out.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    for add, value in (
        (out.add_bos_token_id, 1),
        (out.add_eos_token_id, 2),
        (out.add_pad_token_id, 2),
        (out.add_unk_token_id, 0),
    ):
        add(value)
    out.add_chat_template(TEMPLATE)
    names = {
        "self_attn.": "attn_",
        "q_proj": "q",
        "k_proj": "k",
        "v_proj": "v",
        "o_proj": "output",
        "post_attention_layernorm": "ffn_norm",
    }
    names |= {"mlp.": "ffn_", "gate_proj": "gate", "up_proj": "up", "down_proj": "down", "input_layernorm": "attn_norm"}
    names |= {"model.layers": "blk", "model.norm": "output_norm", "model.embed_tokens": "token_embd"}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:
            halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, tensor.shape[1])
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        out.add_tensor(name, tensor.contiguous().numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
