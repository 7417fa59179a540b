"""Export of a trained language model to a folder for transformers or peft: weights, tokenizer, chat template, model card."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from rgpo.language.assets import AssetLoader, LanguageAssets
from rgpo.language.policy.pretrained import quiet
from rgpo.language.policy.stopping import StopRule
from rgpo.learning.export import Facts, NoExport
from rgpo.learning.types import Policy, State

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from rgpo.language.policy.language_model import LanguageModel

CARD = """\
---
library_name: {library}{base_model}
tags: [rgpo, rlhf, {algo}]
---

# {title}

{kind} after {iteration:,} iterations of `{algo}` on {task}, trained with rgpo {version} from `{base}`.

```python
{usage}
```

## Results

On held-out prompts where named eval, else of the last rollout; the names are explained in docs/language.md of rgpo.

| metric | value |
|---|---|
{metrics}

## Provenance

| | |
|---|---|
{provenance}

{precision}
"""
WHOLE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")"""
ADAPTER = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("FOLDER", dtype="{dtype}")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")"""


class ModelTask(Protocol):
    """The part of a language task that an exported model depends on."""

    source: AssetLoader
    assets: LanguageAssets

    @property
    def stop_rule(self) -> StopRule: ...


def export_model(task: ModelTask, policy: Policy, state: State, folder: Path, facts: Facts, merged: bool = False) -> None:
    """Write the adapter, or all weights in the dtype in which they were loaded, with tokenizer, configs and model card.

    state: the policy's complete state. merged: first merge the adapters into the weights, which modifies this policy.

    Raises: NoExport if the policy is not a LanguageModel.
    """
    from rgpo.language.policy.language_model import LanguageModel

    if not isinstance(policy, LanguageModel):
        raise NoExport(f"{type(policy).__name__} is no language model of rgpo and has no method export")
    model = policy.model
    trained = {name: cast("Tensor", state[name]) for name, p in model.named_parameters() if p.requires_grad}
    adapted = hasattr(model, "peft_config")
    base, revision = _base(task, model)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if adapted and merged:
            model = model.merge_and_unload()
            trained, adapted = {}, False
        if adapted:
            _write_adapter(model, trained, folder, base, revision)
        else:
            _write_whole(model, trained, folder, policy.compute_dtype)
        _write_generation_config(model, folder, task.stop_rule.ids)
        task.assets.tokenizer.save_pretrained(folder)
    card = folder / "README.md"
    card.write_text(_card(facts, policy, base, adapted, merged), encoding="utf-8")
    for file in folder.glob("*.safetensors"):  # safetensors makes them readable only by the owner
        file.chmod(card.stat().st_mode)


def _base(task: ModelTask, model: PreTrainedModel) -> tuple[str, str | None]:
    """The base model of the training, as transformers can find it: an absolute path, or a hub id and its commit."""
    named = getattr(task.source, "model", None)
    loaded = str(getattr(model.config, "name_or_path", "") or "")
    if named is None:
        return loaded, None
    path = Path(str(named)).expanduser()
    if path.exists():
        return str(path.absolute()), None
    name, _, revision = str(named).partition("@")
    return name, task.assets.versions.get(name, revision or None)


def _write_adapter(model: PreTrainedModel, trained: Mapping[str, Tensor], folder: Path, base: str, revision: str | None) -> None:
    config = model.peft_config["default"]
    before = config.base_model_name_or_path, config.revision, config.inference_mode
    config.base_model_name_or_path, config.revision = base, revision
    try:
        model.save_pretrained(folder, state_dict=dict(trained), save_embedding_layers=False)
    finally:
        config.base_model_name_or_path, config.revision, config.inference_mode = before
    (folder / "README.md").unlink(missing_ok=True)  # replaces peft's template


def _write_whole(model: PreTrainedModel, trained: Mapping[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    from transformers import GenerationConfig

    weights = {name: x.to(dtype) if x.is_floating_point() else x for name, x in model.state_dict().items() if name not in trained}
    weights |= {name: x.to(dtype) for name, x in trained.items()}
    for name, tied in _tied(model):
        if tied in trained:
            weights[name] = weights[tied]
    config, generation = model.config, model.generation_config
    model.generation_config = GenerationConfig()  # written separately: transformers refuses to save some configs that it loads
    try:
        model.save_pretrained(folder, state_dict=weights)
    finally:
        model.generation_config = generation
    saved = copy.deepcopy(config)
    saved.dtype = dtype
    saved.save_pretrained(folder)


def _tied(model: PreTrainedModel) -> Iterable[tuple[str, str]]:
    """(other name, first name) of each parameter that has several names."""
    first = {id(p): name for name, p in model.named_parameters()}
    for name, p in model.named_parameters(remove_duplicate=False):
        if first[id(p)] != name:
            yield name, first[id(p)]


def _write_generation_config(model: PreTrainedModel, folder: Path, stop_ids: Iterable[int]) -> None:
    """Write the model's own generation config, with the tokens that ended completions in training."""
    found = copy.deepcopy(model.generation_config)
    if found is not None:
        ids = sorted(stop_ids)
        found.eos_token_id = ids[0] if len(ids) == 1 else ids
        found.to_json_file(folder / "generation_config.json", use_diff=True)


def _card(facts: Facts, policy: LanguageModel, base: str, adapted: bool, merged: bool) -> str:
    dtype, local = str(policy.compute_dtype).removeprefix("torch."), Path(base).is_absolute()
    kind = "A LoRA adapter" if adapted else "A model with merged LoRA adapters" if merged else "A model"
    exact = "Its logits equal those of the policy that was trained."
    if merged:
        exact = "Merging rounds: its logits equal those of the policy up to the precision of its weights."
    elif not adapted and dtype != "float32":
        exact = f"Training kept float32 weights, which are rounded to {dtype} here."
    provenance = {
        "run": facts.run_id,
        "command": f"`{facts.command}`",
        "commit": facts.commit or "not known",
        "seed": facts.seed,
        "iteration": facts.iteration,
        "environment steps (tokens)": facts.env_steps,
        **facts.versions,
    }
    return CARD.format(
        library="peft" if adapted else "transformers",
        base_model="" if local else f"\nbase_model: {_yaml(base)}",
        algo=facts.algo,
        title=facts.run_id,
        kind=kind,
        iteration=facts.iteration,
        task=facts.task,
        version=facts.versions.get("rgpo", ""),
        base="/".join(Path(base).parts[-2:]) if local else base,  # without this machine's folders
        usage=ADAPTER.format(dtype=dtype) if adapted else WHOLE,
        metrics="\n".join(f"| {name} | {value:.6g} |" for name, value in facts.metrics.items()) or "| none | |",
        provenance="\n".join(f"| {name} | {_cell(value)} |" for name, value in provenance.items()),
        precision=exact,
    )


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def _yaml(text: str) -> str:
    """Quote a text as a YAML scalar."""
    escaped = text.replace("'", "''")
    return f"'{escaped}'"
