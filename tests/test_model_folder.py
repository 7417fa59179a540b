"""model/ of language runs: loaded by transformers or peft it computes the logits of the policy, and rgpo takes it back."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli import rgpo_run, start, the_run
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from test_language_cli import parts as parts
from test_language_cli import words
from test_resume import wait_for_iteration
from transformers import AutoModelForCausalLM, AutoTokenizer

import rgpo
from rgpo.cli import export
from rgpo.language.policy import language_model
from rgpo.runtime import manifest

IDS = torch.tensor([[5, 9, 30, 7, 41, 12, 60, 8]])
SHORT = ("num_iterations=2", "update.lr=1e-2")
LORA = ("task.lora.rank=2",)
FULL = ("task.lora=null",)


def logits_of(run: rgpo.Run) -> torch.Tensor:
    """Logits of the policy that the last checkpoint holds."""
    policy = run.policy
    with torch.no_grad(), policy.precision():
        return policy.model(input_ids=IDS).logits.float()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


@pytest.fixture(scope="module")
def lora(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> rgpo.Run:
    here = tmp_path_factory.mktemp("lora")
    return rgpo.run(*words(parts, "algo=rgpo", *SHORT, *LORA, f"results_dir={here}"))


@pytest.fixture(scope="module")
def full(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> rgpo.Run:
    here = tmp_path_factory.mktemp("full")
    return rgpo.run(*words(parts, "algo=ppo", *SHORT, *FULL, f"results_dir={here}"))


def test_frozen_layers_are_exported_as_they_were(parts: Path, tmp_path: Path) -> None:
    """task.trained_layers=1 of two: only the last layer and the norm after it differ from the model that training began with."""
    run = rgpo.run(*words(parts, "algo=ppo", *SHORT, *FULL, "task.trained_layers=1", f"results_dir={tmp_path}"))
    loaded = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    assert torch.equal(logits(loaded), logits_of(run))
    before, after = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (parts / "model", run.folder / "model"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith(("model.layers.1.", "model.norm.")) for name in changed)


def test_an_adapter_gives_the_policys_logits_exactly(lora: rgpo.Run, parts: Path) -> None:
    folder = lora.folder / "model"
    loaded = AutoPeftModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(loaded), logits_of(lora))
    base = AutoModelForCausalLM.from_pretrained(parts / "model")
    assert not torch.equal(logits(base), logits(loaded))  # something was learned
    names = load_file(folder / "adapter_model.safetensors")
    assert names and not [name for name in names if "lora_" not in name]
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(parts / "model")
    assert not (folder / "model.safetensors").exists()


def test_whole_weights_give_the_policys_logits_exactly(full: rgpo.Run, parts: Path) -> None:
    folder = full.folder / "model"
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(loaded), logits_of(full))
    assert {*load_file(folder / "model.safetensors")} == {*load_file(parts / "model" / "model.safetensors")}  # no value head
    assert not list(folder.glob("adapter*"))


def test_the_checkpoints_dtype_is_kept(parts: Path, tmp_path: Path) -> None:
    half = shutil.copytree(parts / "model", tmp_path / "half")
    weights = {name: x.to(torch.bfloat16) for name, x in load_file(half / "model.safetensors").items()}
    save_file(weights, half / "model.safetensors", metadata={"format": "pt"})
    words_of_half = [w for w in words(parts, "algo=grpo", *SHORT) if not w.startswith(("task.source.model", "task.source.dtype"))]
    given = [*words_of_half, f"task.source.model={half}", "task.source.dtype=bfloat16", f"results_dir={tmp_path}"]
    for lora in (FULL, LORA):
        run = rgpo.run(*given, *lora)
        folder = run.folder / "model"
        if lora == FULL:
            found = load_file(folder / "model.safetensors")
            assert {x.dtype for x in found.values()} == {torch.bfloat16}
            config = json.loads((folder / "config.json").read_text())
            assert config["dtype"] == "bfloat16"
            trained = {name: p.detach().to(torch.bfloat16) for name, p in run.policy.model.named_parameters()}
            assert all(torch.equal(trained[name], x) for name, x in found.items()) and len(found) == len(trained)
            assert "rounded to bfloat16" in (folder / "README.md").read_text()
        else:
            loaded = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
            assert torch.equal(logits(loaded), logits_of(run))


def test_tokenizer_template_and_generation_config(lora: rgpo.Run, full: rgpo.Run, parts: Path) -> None:
    before = AutoTokenizer.from_pretrained(parts / "model")
    talk = [{"role": "user", "content": "what is a cat?"}]
    for run in (lora, full):
        after = AutoTokenizer.from_pretrained(run.folder / "model")
        assert after.apply_chat_template(talk, tokenize=False) == before.apply_chat_template(talk, tokenize=False)
        assert after("what is a cat?").input_ids == before("what is a cat?").input_ids and len(after) == len(before)
        assert json.loads((run.folder / "model" / "generation_config.json").read_text())["eos_token_id"] == 1


def test_the_card_names_metrics_and_provenance_and_no_folders_of_this_machine(lora: rgpo.Run, parts: Path) -> None:
    text = (lora.folder / "model" / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {"library_name": "peft", "tags": ["rgpo", "rlhf", "rgpo"]}
    last = lora.metrics.iloc[-1]
    assert f"| reward/eval_proxy_mean | {last['reward/eval_proxy_mean']:.6g} |" in body
    assert lora.folder.name in body and "| transformers |" in body and "AutoPeftModelForCausalLM" in body
    assert "from `" in body and f"from `{parts}" not in body


def test_the_manifest_covers_the_folder(lora: rgpo.Run, tmp_path: Path) -> None:
    copy = shutil.copytree(lora.folder, tmp_path / lora.folder.name)
    listed = {name for name in manifest.read(copy)["files"] if name.startswith("model/")}
    assert listed == {f"model/{path.name}" for path in (copy / "model").iterdir()} and len(listed) >= 6
    assert manifest.problems(copy) == []
    (copy / "model" / "README.md").write_text("another")
    (copy / "model" / "tokenizer.json").unlink()
    assert len(manifest.problems(copy)) == 2 and "tokenizer.json is missing" in " ".join(manifest.problems(copy))


def test_export_merges_and_the_merged_model_is_taken_back(
    lora: rgpo.Run, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([str(lora.folder), str(tmp_path / "adapter")]) == 0
    same = [path.name for path in (lora.folder / "model").iterdir()]
    assert sorted(same) == sorted(path.name for path in (tmp_path / "adapter").iterdir())
    for name in same:
        assert (tmp_path / "adapter" / name).read_bytes() == (lora.folder / "model" / name).read_bytes(), name
    assert export.main([str(lora.folder), str(tmp_path / "merged"), "merged=true"]) == 0
    assert "the policy after iteration 2" in capsys.readouterr().out
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits_of(lora), atol=2e-6, rtol=1e-5)
    assert {*load_file(tmp_path / "merged" / "model.safetensors")} == {*load_file(parts / "model" / "model.safetensors")}
    again = [w for w in words(parts, "algo=grpo", *SHORT) if not w.startswith("task.source.model=")]
    run = rgpo.run(*again, f"task.source.model={tmp_path / 'merged'}", *FULL, f"results_dir={tmp_path / 'results'}")
    assert run.status == "completed" and (run.folder / "model" / "model.safetensors").exists()


def test_export_of_whole_weights_is_taken_back(
    full: rgpo.Run, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([str(full.folder), str(tmp_path / "whole"), "merged=true"]) == 2
    assert "merged=true: the run trained no adapter that could be merged" in capsys.readouterr().err
    assert not (tmp_path / "whole").exists()
    again = [w for w in words(parts, "algo=grpo", *SHORT) if not w.startswith("task.source.model=")]
    run = rgpo.run(*again, f"task.source.model={full.folder / 'model'}", *LORA, f"results_dir={tmp_path / 'results'}")
    assert run.status == "completed"
    with run.policy.model.disable_adapter():
        assert torch.equal(logits_of(run), logits_of(full))


def test_dpo_leaves_a_model_too(parts: Path, tmp_path: Path) -> None:
    pairs = ["sampler@task.sampler=offline_pairs", "num_iterations=2", f"results_dir={tmp_path}"]
    run = rgpo.run(*words(parts, "algo=dpo", *LORA, *pairs))
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(run.folder / "model")), logits_of(run))


def test_save_model_false_leaves_none_and_is_the_same_run(parts: Path, tmp_path: Path) -> None:
    given = words(parts, "algo=grpo", *SHORT, *LORA, f"results_dir={tmp_path}")
    run = rgpo.run(*given, "save_model=false")
    assert run.status == "completed" and not (run.folder / "model").exists()
    assert rgpo.run(*given).folder == run.folder
    assert export.main([str(run.folder), str(tmp_path / "later")]) == 0
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "later")), logits_of(run))


def test_a_killed_run_is_exported_from_its_checkpoint(parts: Path, tmp_path: Path) -> None:
    given = words(parts, "algo=grpo", *LORA, "num_iterations=400")
    process = start(given, tmp_path)
    wait_for_iteration(tmp_path / "results", 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = the_run(tmp_path / "results")
    assert export.main([str(folder), str(tmp_path / "out")]) == 0
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(loaded), logits_of(rgpo.load(folder)))


def test_a_model_that_cannot_be_saved_costs_a_sentence_and_not_the_run(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rgpo.language import export as language_export

    def fail(*_: object) -> None:
        raise RuntimeError("shared tensors\nand more")

    monkeypatch.setattr(language_export, "_write_adapter", fail)
    run = rgpo.run(*words(parts, "algo=grpo", *SHORT, *LORA, f"results_dir={tmp_path}"))
    assert run.status == "completed" and not (run.folder / "model").exists()
    assert "no model/: RuntimeError: shared tensors; the checkpoint alone holds the policy" in capsys.readouterr().out
    assert not [path for path in run.folder.iterdir() if path.name.endswith(".writing")]


def test_nothing_of_the_value_head_is_exported(full: rgpo.Run) -> None:
    assert isinstance(full._parts.policy, language_model.LanguageModel) and full._parts.policy.critic is not None
    for file in (full.folder / "model").glob("*.safetensors"):
        assert not [name for name in load_file(file) if "value" in name and "v_proj" not in name]


def test_commands_end_to_end(parts: Path, tmp_path: Path) -> None:
    text = rgpo_run(words(parts, "algo=grpo", *SHORT, *LORA), tmp_path)
    assert "no model/" not in text and (the_run(tmp_path / "results") / "model" / "adapter_model.safetensors").exists()
