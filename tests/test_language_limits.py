"""Language tasks refuse what cannot work: numbers out of range, other assets on resume, damaged builds, templates with code."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import make_assets, write_model

from rgpo.cli.config import compose_jobs
from rgpo.errors import ConfigError
from rgpo.language.assets import Log
from rgpo.language.data.build_cache import artifact_folder, build_once
from rgpo.language.data.chat import apply_chat_template
from rgpo.language.data.dataset import check_data, find_files, read_pairs
from rgpo.language.policy.model_files import check_path, resolve_folder
from rgpo.language.policy.pretrained import load_causal_lm
from rgpo.language.policy.samplers import Own
from rgpo.language.task import Language
from rgpo.learning.types import Requirements

SMOLLM2 = ["scale=smollm2", "task.source.data=Anthropic/hh-rlhf/harmless-base"]
NONSENSE = {
    "task.num_prompts=1000000000": [],
    "task.num_prompts=0": [],
    "task.num_prompts=-1": [],
    "task.num_prompts=1e3": [],
    "task.num_prompts=[1]": [],
    "task.group_size=1000000000": [],
    "task.group_size=100000000": [],
    "task.max_new_tokens=10000000": [],
    "task.micro_batch_size=0": [],
    "task.num_kl_tokens=1000000000000": [],
    "task.staleness=1000000": [],
    "task.staleness=-1": [],
    "task.num_eval_prompts=0": [],
    "task.num_samples=-1": [],
    "task.temperature=0": [],
    "task.temperature=inf": [],
    "task.temperature=nan": [],
    "task.temperature=1e-300": [],
    "task.ratio=word": [],
    "task.reduction=[]": [],
    "task.parallel=null": [],
    "task.gradient_checkpointing=1": [],
    "task.lora=-1": [],
    "task.lora={}": [],
    "task.lora=[]": [],
    "task.lora.rank=-1": SMOLLM2,
    "task.lora.rank=1000000": SMOLLM2,
    "task.lora.rank=1.5": SMOLLM2,
    "task.lora.alpha=0": SMOLLM2,
    "task.lora.alpha=inf": SMOLLM2,
    "task.lora.target_modules=[]": SMOLLM2,
    "task.lora.target_modules=3": SMOLLM2,
    "task.source.prompt_share=0": SMOLLM2,
    "task.source.heldout_share=inf": SMOLLM2,
    "task.source.max_pairs=0": SMOLLM2,
    "task.source.reward_layers=31": SMOLLM2,
    "task.source.reward_l2=-1": SMOLLM2,
    "task.source.dtype=half": SMOLLM2,
    "task.source.device=meta": SMOLLM2,
    "task.source.device=": SMOLLM2,
    "task.sampler.correction_cap=0": [],
    "task.sampler.correction_cap=inf": [],
    "algorithm.beta=0": ["algo=dpo", *SMOLLM2],
    "algorithm.lr=inf": ["algo=dpo", *SMOLLM2],
    "algorithm.num_epochs=1000000000": ["algo=dpo", *SMOLLM2],
    "algorithm.max_grad_norm=0": ["algo=dpo", *SMOLLM2],
}


@pytest.mark.parametrize("word", NONSENSE)
def test_numbers_out_of_range_are_refused_at_once_by_their_key(word: str) -> None:
    key = word.partition("=")[0]
    compose_jobs(["task=qwen_rlhf", "scale=embedded", "algo=grpo", *NONSENSE[word], "plan=true"], False, None)
    started = time.perf_counter()
    with pytest.raises(ConfigError, match=rf"^(?:{key}=|task\.num_prompts=)") as error:
        compose_jobs(["task=qwen_rlhf", "scale=embedded", "algo=grpo", *NONSENSE[word], word, "plan=true"], False, None)
    assert "\n" not in str(error.value) and time.perf_counter() - started < 20


def make_task(assets: Any, **changes: Any) -> Language:
    counts = {"num_prompts": 2, "group_size": 2, "max_new_tokens": 8, "micro_batch_size": 4, "num_kl_tokens": 8}
    counts |= {"staleness": 0, "num_eval_prompts": 2, "num_samples": 2}
    texts = {"ratio": "token", "reduction": "token_mean", "parallel": "ddp", "stop_tokens": None, "stop_strings": []}
    settings = {
        **counts,
        **texts,
        "lora": None,
        "temperature": 1.0,
        "gradient_checkpointing": False,
        "center_scores": False,
        **changes,
    }
    return Language(source=SimpleNamespace(load=lambda log: assets), sampler=Own(), **settings)


REQUIREMENTS = Requirements(gamma=1.0, critic=False, num_minibatches=1)


def test_a_checkpoint_is_not_continued_with_another_version_of_a_model(tiny_checkpoint: Path) -> None:
    model, tokenizer = load_causal_lm(tiny_checkpoint, dtype="float32", device="cpu")
    first, same, other, none = (
        make_task(make_assets(model, tokenizer, [[5, 9], [7]], versions=versions))
        for versions in ({"hub/model": "a1"}, {"hub/model": "a1"}, {"hub/model": "b2"}, {})
    )
    for task in (first, same, other, none):
        task.setup(0, REQUIREMENTS)
    saved = first.state_dict()
    same.load_state_dict(saved)
    none.load_state_dict(saved)
    with pytest.raises(ConfigError, match=r"^task.source=hub/model: is b2 and was a1 .*; restore it, pin it by hub/model@a1, or"):
        other.load_state_dict(saved)
    del saved["versions"]  # a checkpoint of before
    other.load_state_dict(saved)


def test_completions_that_exceed_the_models_context_are_refused(tiny_checkpoint: Path) -> None:
    model, tokenizer = load_causal_lm(tiny_checkpoint, dtype="float32", device="cpu")
    context = model.config.max_position_embeddings
    assets = make_assets(model, tokenizer, [[5] * 4, [7]])
    make_task(assets, max_new_tokens=context - 4).setup(0, REQUIREMENTS)
    with pytest.raises(
        ConfigError, match=rf"^task.max_new_tokens={context - 3}: exceeds the model's context of {context} tokens"
    ):
        make_task(assets, max_new_tokens=context - 3).setup(0, REQUIREMENTS)


def test_one_flipped_bit_of_a_build_is_noticed(tmp_path: Path) -> None:
    """In any file, the report and the stamp among them; a stamp without the report's digest is an earlier version's."""
    built: list[int] = []

    def build(aside: Path, log: Log) -> dict[str, Any]:
        (aside / "model").mkdir(parents=True)
        (aside / "model" / "weights").write_bytes(bytes(range(256)))
        built.append(1)
        return {"accuracy": 0.75, "built": "a" * len(built)}

    folder = artifact_folder(tmp_path, "thing", {"x": 1})

    def load() -> int:
        build_once(folder, {"x": 1}, build, lambda line: None, lock="lock", what="thing")
        return len(built)

    assert load() == 1 == load()
    for name in ("model/weights", "report.json", "stamp.json"):
        file, before = folder / name, load()
        data = bytearray(file.read_bytes())
        data[data.index(b"75") if name == "report.json" else data.index(b'"sha256') + 15 if name == "stamp.json" else 100] ^= 1
        file.write_bytes(data)
        assert load() == before + 1 == load()
    stamp = json.loads((folder / "stamp.json").read_text())
    del stamp["sha256"]["report.json"]
    (folder / "stamp.json").write_text(json.dumps(stamp))
    assert load() == 4


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch PWNED') }}",
    "{{ messages.__class__.__base__ }}",
    "{{ messages.append(1) }}",
    "{% include '/etc/passwd' %}",
    "{% for i in range(1000000000) %}{% endfor %}",
    "{{ 1 / 0 }}",
    "{% if %}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_chat_template_reaches_neither_python_nor_files(template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, tokenizer = load_causal_lm(write_model(tmp_path / "model", template=template), dtype="float32", device="cpu")
    try:
        text = apply_chat_template(tokenizer, [{"role": "user", "content": "a"}], answer_next=True)
    except ConfigError as error:
        assert str(error).startswith("task.source.model=") and "\n" not in str(error)
    else:
        assert text == ""  # an attribute that the sandbox hides
    assert not (tmp_path / "PWNED").exists()
    assert torch.is_grad_enabled()


ODD_PATHS = ["~nobody_of_this_name/x", "/" + "x" * 300, "a\0b", "/dev/zero", "/proc/self/mem/x"]


@pytest.mark.parametrize("text", ODD_PATHS)
def test_odd_paths_are_refused_before_anything_is_loaded(text: str) -> None:
    for check, key in ((lambda: check_path("task.source.model", text), "model"), (lambda: check_data(text), "data")):
        with pytest.raises(ConfigError, match=f"^task.source.{key}=") as error:
            check()
        assert "\n" not in str(error.value) and len(str(error.value)) < 1500


@pytest.mark.parametrize("name", ["hub/model@", "hub/model@../../x", "hub/model@a b", "hub/model@-x", "hub/model@a@b"])
def test_a_revision_is_a_branch_a_tag_or_a_commit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("called the hub"))
    with pytest.raises(ConfigError, match=r"^task\.source\.model=.*: names no branch, tag or commit after @\.$"):
        resolve_folder("task.source.model", name)


def test_odd_files_of_a_model_or_a_data_set_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifo is not opened; deep nesting, wrong types and long lines are sentences."""
    folder = write_model(tmp_path / "model")
    os.mkfifo(folder / "generation_config.json.d_config.json")
    check_path("task.source.model", str(folder))
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data" / "data.jsonl")
    with pytest.raises(ConfigError, match=r"contains no file that ends in \.jsonl"):
        find_files(str(tmp_path / "data"))
    config = json.loads((folder / "config.json").read_text())
    for text in ("[" * 100_000, json.dumps(config | {"hidden_size": "x"}), json.dumps(config | {"num_attention_heads": 0}), "[]"):
        (folder / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=r"^task\.source\.model=.*(cannot be|is not an object)") as error:
            load_causal_lm(folder, dtype="float32", device="cpu")
        assert "\n" not in str(error.value)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_causal_lm(folder, dtype="float32", device="cpu")
    monkeypatch.setattr("rgpo.language.data.rows.MAX_LINE", 1000)
    for line, why in (("x" * 1001, "line 1 is longer than 1000 bytes"), ("{" * 900, "the first, line 1, is not valid JSON")):
        (tmp_path / "odd.jsonl").write_text(line)
        with pytest.raises(ConfigError, match=why):
            read_pairs([tmp_path / "odd.jsonl"], lambda line: None)
