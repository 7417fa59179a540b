"""Loading causal language models from folders in the real format, the errors, and LoRA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import write_model
from torch import nn
from transformers import OPTConfig, OPTForCausalLM, Qwen2ForCausalLM, Qwen2ForSequenceClassification

from rgpo.errors import ConfigError
from rgpo.language.policy import pretrained
from rgpo.language.policy.model_files import check_path
from rgpo.language.policy.pretrained import (
    LoRA,
    add_lora,
    checkpoint_layers,
    load_causal_lm,
    load_model,
    require_packages,
    train_last_layers,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def refused(folder: Path | str, match: str, **options: Any) -> None:
    """The error is one line that starts with the key."""
    with pytest.raises(ConfigError, match=match) as error:
        load_causal_lm(folder, dtype="float32", device="cpu", **options)
    message = str(error.value)
    assert message.startswith("task.source.model=") and message.endswith(".") and "\n" not in message


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_saved_model_loads_with_its_weights_and_its_tokenizer(saved: Path) -> None:
    model, tokenizer = load_causal_lm(saved, dtype="float32", device="cpu")
    wanted = Qwen2ForCausalLM.from_pretrained(saved)
    assert not model.training and model.dtype == torch.float32 and model.config._attn_implementation == "sdpa"
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), wanted.state_dict().values(), strict=True))
    ids = tokenizer("what is a cat?")["input_ids"]
    assert tokenizer.decode(ids) == "what is a cat?" and tokenizer.eos_token_id == 1
    assert load_causal_lm(str(saved), dtype="bfloat16", device="cpu")[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("absent", "match"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer"),
        ("model.safetensors", "has no model.safetensors"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused(folder: Path, absent: str, match: str) -> None:
    (folder / absent).unlink()
    refused(folder, match)
    with pytest.raises(ConfigError, match=match):  # and before anything is loaded
        check_path("task.source.model", str(folder))


def test_pickle_weights_are_never_read(folder: Path) -> None:
    torch.save(Qwen2ForCausalLM.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    load_causal_lm(folder, dtype="float32", device="cpu")  # safetensors beside them are read instead
    (folder / "model.safetensors").unlink()
    refused(folder, r"only pickle weights \(pytorch_model.bin\), which can run code.*model.safetensors")


def test_shards_are_loaded_and_a_missing_one_is_named(folder: Path) -> None:
    whole = Qwen2ForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    whole.save_pretrained(folder, max_shard_size="10KB")
    model, _ = load_causal_lm(folder, dtype="float32", device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), whole.state_dict().values(), strict=True))
    last = sorted(folder.glob("model-*.safetensors"))[-1]
    last.unlink()
    refused(folder, f"lacks weights listed in its index .*{last.name}")


CODE: dict[str, tuple[str, dict[str, Any]]] = {
    "own class": ("config.json", {"auto_map": {"AutoConfig": "own.OwnConfig"}, "model_type": "own"}),
    "own tokenizer": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Own", None]}}),
    "own class of a part": ("config.json", {"text_config": [{"auto_map": {"AutoConfig": "own.OwnConfig"}}]}),
    "own processor": ("processor_config.json", {"auto_map": {"AutoProcessor": "own.Own"}}),
    "kernels of a repository": ("config.json", {"attn_implementation": "someone/kernels"}),
    "kernels by the attribute": ("config.json", {"_attn_implementation": "someone/kernels"}),
}


@pytest.mark.parametrize("name", CODE)
def test_a_models_own_code_never_runs(folder: Path, name: str) -> None:
    file, entries = CODE[name]
    (folder / "own.py").write_text("raise SystemExit('ran')")
    (folder / file).touch()
    (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text() or "{}"), **entries}))
    refused(folder, f"{file} would run code of the model's authors")
    with pytest.raises(ConfigError, match="would run code"):  # and before anything is loaded
        check_path("task.source.model", str(folder))


def test_an_adapter_whose_base_may_be_any_model_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else", "peft_type": "LORA"}))
    refused(folder, "has an adapter, whose base may be any other model")


@pytest.mark.parametrize("shard", ["pytorch_model.bin", "../model.safetensors", "/etc/x.safetensors", 3])
def test_an_index_lists_safetensors_of_its_folder_only(folder: Path, shard: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": shard}}))
    torch.save({}, folder / "pytorch_model.bin")
    refused(folder, "is no safetensors file of the folder")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": 3}))
    refused(folder, "lacks weights listed in its index")


def test_weights_that_are_not_in_the_files_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "body", Qwen2ForCausalLM)
    with pytest.raises(ConfigError, match=r"1 weights of a Qwen2ForSequenceClassification are not in its files \(score.weight"):
        load_model("key", tmp_path / "body", Qwen2ForSequenceClassification, "float32", torch.device("cpu"), num_labels=1)


def test_a_broken_file_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    refused(folder, "cannot be loaded")
    (folder / "config.json").write_text("{")
    refused(folder, r"config.json cannot be read \(Expecting")


def test_a_tokenizer_larger_than_the_model_is_refused(folder: Path) -> None:
    _, tokenizer = load_causal_lm(folder, dtype="float32", device="cpu")
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    refused(folder, "the tokenizer has 281 tokens and the model only 280")


def test_a_model_that_does_not_exist_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tmp_path / "nowhere", "there is no such folder")
    refused("./nowhere", "there is no such folder")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    refused(
        "Qwen/Qwen2.5-1.5B-Instruct",
        "is not a local folder and cannot be downloaded from the hub .*check the name and the network",
    )
    refused("no such model", "is not a local folder and cannot be downloaded from the hub .*Repo id")


def test_bad_settings_are_refused(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"task.source.dtype=float8: choose one of float32"):
        load_causal_lm(saved, dtype="float8", device="cpu")
    with pytest.raises(ConfigError, match=r"task.source.device=abacus: cannot be used"):
        load_causal_lm(saved, dtype="float32", device="abacus")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    require_packages("task", "transformers")
    with pytest.raises(ConfigError, match=r"task: needs the package no_such_package; install it with `pip install rgpo\[llm\]`"):
        require_packages("task", "transformers", "no_such_package")
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"task.lora: needs the package peft"):
        add_lora(None, rank=1, alpha=1, dropout=0.0, target_modules="all-linear", seed=0)


def lora(saved: Path, seed: int, targets: Any = ("q_proj", "v_proj")) -> Any:
    model, _ = load_causal_lm(saved, dtype="float32", device="cpu")
    return add_lora(model, rank=4, alpha=8, dropout=0.0, target_modules=targets, seed=seed)


def test_lora_starts_at_the_model_and_trains_only_itself(saved: Path) -> None:
    ids = torch.arange(10)[None]
    base = load_causal_lm(saved, dtype="float32", device="cpu")[0](ids).logits
    model = lora(saved, 0)
    assert torch.equal(model(ids).logits, base)  # B = 0
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 2 * 2 and all("lora_" in name for name in trained)  # A and B, two modules, two layers
    a, b = (next(p for n, p in model.named_parameters() if f"q_proj.lora_{x}" in n) for x in "AB")
    with torch.no_grad():
        b.copy_(torch.randn(b.shape))
    x = torch.randn(3, 16)
    module = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    torch.testing.assert_close(module(x) - module.base_layer(x), 8 / 4 * x @ a.T @ b.T)
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, base)


def test_lora_comes_from_its_seed_alone(saved: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = lora(saved, 1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again, other = lora(saved, 1), lora(saved, 2)
    a, b, c = ([p for name, p in model.named_parameters() if "lora_A" in name] for model in (first, again, other))
    assert len(a) == 4 and all(map(torch.equal, a, b)) and not any(map(torch.equal, a, c))


@pytest.mark.parametrize(
    ("key", "value"),
    [("rank", 0), ("rank", -1), ("rank", 10**9), ("alpha", 0.0), ("alpha", float("inf")), ("target_modules", "(")]
    + [("target_modules", value) for value in ([], [""], [3], "")],
)
def test_adapters_out_of_range_are_refused(key: str, value: Any) -> None:
    good = {"rank": 4, "alpha": 8.0, "target_modules": "all-linear"}
    LoRA(**good)
    with pytest.raises(ConfigError, match=rf"^task\.lora\.{key}=.*: must be "):
        LoRA(**(good | {key: value}))


def test_lora_on_missing_modules_is_refused(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"task.lora.target_modules=\['nope'\]: .*nope"):
        lora(saved, 0, ["nope"])


def test_checkpointing_leaves_the_model_in_eval_mode(saved: Path) -> None:
    """Layers run again in the backward pass, the gradient is the same, and dropout given as a number stays off."""
    config = OPTConfig(vocab_size=280, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, dropout=0.5)
    model, ids, calls = OPTForCausalLM(config).eval(), torch.arange(10)[None], list[int]()
    model.model.decoder.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))

    def gradient() -> torch.Tensor:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    wanted = gradient()
    assert len(calls) == 1
    checkpoint_layers(model)
    assert torch.equal(gradient(), wanted) and len(calls) == 3 and not any(m.training for m in model.modules())
    with torch.no_grad():
        model(ids)
    assert len(calls) == 4


def test_checkpointing_without_marked_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^task.gradient_checkpointing=True: a Linear has no layers .*; set it to false\.$"):
        checkpoint_layers(nn.Linear(2, 2))


def test_the_last_layers_alone_are_trained(saved: Path) -> None:
    """A tied head is the embeddings, which are not trained; gradients reach what is trained, and nothing below it."""
    model, _ = load_causal_lm(saved, dtype="float32", device="cpu")
    every = {name for name, _ in model.named_parameters()}
    for count, expected in ((2, {"layers.0", "layers.1", "norm"}), (1, {"layers.1", "norm"}), (None, None)):
        train_last_layers(model, count)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        if expected is None:
            assert trained == every
        else:
            assert {".".join(name.split(".")[1 : 3 if "layers" in name else 2]) for name in trained} == expected
        model.zero_grad()
        checkpoint_layers(model)
        model(torch.tensor([[5, 6, 7]])).logits.sum().backward()
        assert {name for name, p in model.named_parameters() if p.grad is not None} == trained
    with pytest.raises(ConfigError, match=r"task\.trained_layers=3: a Qwen2ForCausalLM has 2 layers; lower it, or use null\."):
        train_last_layers(model, 3)
    with pytest.raises(ConfigError, match=r"task\.trained_layers=1: the layers of a Linear cannot be told apart; use null\."):
        other: Any = nn.Linear(1, 1)
        train_last_layers(other, 1)
