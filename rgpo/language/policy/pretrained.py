"""Loading of causal language models from a folder, LoRA, and the choice of trained layers.

torch is imported only when a model is loaded.
"""

from __future__ import annotations

import importlib.util
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rgpo.core.ranges import POSITIVE, accept, check_fields, count
from rgpo.errors import ConfigError, described, first_line, is_out_of_memory, require
from rgpo.language.assets import Prompt
from rgpo.language.policy.model_files import ATTENTIONS, resolve_folder
from rgpo.paths import compiler_cache_dir

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from rgpo.language.policy.language_model import LanguageModel
    from rgpo.learning.types import Policy

DTYPES = ("float32", "bfloat16", "float16")
DEVICE = accept(
    lambda name: re.fullmatch(r"auto|(cpu|cuda|mps|xpu|npu|hpu)(:[0-9]{1,3})?", name) is not None,
    "must be auto, cpu, cuda or cuda:0.",
)


def require_packages(key: str, *names: str, extra: str = "llm") -> None:
    """Raises: ConfigError, with the pip command, if a package is missing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{key}: needs the package {', '.join(missing)}; install it with `pip install rgpo[{extra}]`.")


def forget_unusable_compiler_cache() -> None:
    """Unset torch's compiler cache if it is unusable, because importing transformers makes torch create it."""
    try:
        compiler_cache_dir()
    except ConfigError:
        os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)


def as_language_model(policy: Policy) -> LanguageModel:
    """Cast to LanguageModel, the only policy of language tasks."""
    from rgpo.language.policy.language_model import LanguageModel

    assert isinstance(policy, LanguageModel)
    return policy


def resolve_device(name: str) -> torch.device:
    """The device with this name; auto is the current GPU if there is one, else the CPU.

    Raises: ConfigError if the device cannot be used.
    """
    import torch

    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"task.source.device={name}: cannot be used ({first_line(error)}); choose auto or cpu.") from error


def load_causal_lm(
    path_or_id: str | Path,
    *,
    dtype: str,
    attn_implementation: str = "sdpa",
    device: str = "auto",
    key: str = "task.source.model",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load (AutoModelForCausalLM in eval mode, AutoTokenizer); every weight must be in the files.

    Raises: ConfigError if the model does not exist, lacks config, tokenizer or weights, has only pickle weights, has more tokens
        in its tokenizer than embeddings, has no end-of-sequence token, or would run custom code.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    require(dtype in DTYPES, "task.source.dtype", dtype, f"choose one of {', '.join(DTYPES)}.")
    require(
        attn_implementation in ATTENTIONS, "task.source.attn_implementation", attn_implementation, f"choose one of {ATTENTIONS}."
    )
    folder = resolve_folder(key, str(path_or_id))
    place = resolve_device(device)
    tokenizer: PreTrainedTokenizerBase = load_pretrained(key, folder, AutoTokenizer)
    model = load_model(key, folder, AutoModelForCausalLM, dtype, place, attn_implementation=attn_implementation)
    require(
        len(tokenizer) <= model.get_input_embeddings().num_embeddings,
        key,
        path_or_id,
        f"the tokenizer has {len(tokenizer)} tokens and the model only {model.get_input_embeddings().num_embeddings}.",
    )
    require(tokenizer.eos_token_id is not None, key, path_or_id, "the tokenizer has no end-of-sequence token.")
    return model, tokenizer


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Hugging Face's progress bars and layer listings."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def load_pretrained(key: str, folder: Path, auto: Any, **options: Any) -> Any:
    """auto.from_pretrained(folder, **options) from local files, without custom code and progress bars.

    Raises: ConfigError if the files cannot be loaded.
    """
    try:
        with quiet():
            return auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # damaged or unknown files raise many kinds of errors
        if is_out_of_memory(error):
            raise
        raise ConfigError(f"{key}={folder}: cannot be loaded ({described(error)}).") from error


def load_model(key: str, folder: Path, auto: Any, dtype: str, device: torch.device, **options: Any) -> PreTrainedModel:
    """auto.from_pretrained(folder, **options) in eval mode on a device, with all weights from the folder's safetensors.

    Raises: ConfigError if a weight is not in the files.
    """
    import torch

    options |= {"dtype": getattr(torch, dtype), "use_safetensors": True, "output_loading_info": True}
    model, info = load_pretrained(key, folder, auto, **options)
    absent = sorted(info["missing_keys"])
    if absent:
        raise ConfigError(
            f"{key}={folder}: {len(absent)} weights of a {type(model).__name__} are not in its files ({absent[0]} for one) and "
            "would be random; give a checkpoint of that class."
        )
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def context_length(config: PreTrainedConfig) -> int | None:
    """The context length in tokens; None if the model's config has no limit (ALiBi, Mamba, Bloom)."""
    longest = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None


def require_context(config: PreTrainedConfig, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
    """Raises: ConfigError if the longest prompt with a full completion does not fit in the model's context."""
    longest, context = max(len(prompt.ids) for prompt in prompts), context_length(config)
    fits = context is None or longest + max_new_tokens <= context
    remedy = f"exceeds the model's context of {context} tokens, of which the longest prompt takes {longest}; lower it."
    require(fits, "task.max_new_tokens", max_new_tokens, remedy)


def _names_modules(targets: object) -> bool:
    """True for a valid regular expression or a nonempty list of names."""
    if isinstance(targets, list):
        return bool(targets) and all(isinstance(name, str) and name for name in targets)
    try:
        return isinstance(targets, str) and bool(targets) and re.compile(targets) is not None
    except (re.error, OverflowError, RecursionError):
        return False


MODULES = accept(_names_modules, "must be all-linear, or the names of modules such as [q_proj,v_proj].")


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters instead of full fine-tuning (Hu et al. 2021)."""

    rank: int = field(metadata=count(16_384))
    alpha: float = field(metadata=POSITIVE)
    target_modules: str | list[str] = field(metadata=MODULES)

    def __post_init__(self) -> None:
        check_fields(self, "task.lora")


def add_lora(
    model: PreTrainedModel, *, rank: int, alpha: float, dropout: float, target_modules: str | Sequence[str], seed: int
) -> PreTrainedModel:
    """A peft model with y = W x + (alpha / rank) B A dropout(x) in the target modules; A depends on the seed, B = 0.

    target_modules: names, a regular expression, or all-linear. The global generators' states are restored.
    Raises: ConfigError if a target module does not exist.
    """
    import torch

    require_packages("task.lora", "peft")
    from peft import LoraConfig, get_peft_model

    names = target_modules if isinstance(target_modules, str) else list(target_modules)
    config = LoraConfig(
        r=rank,
        lora_alpha=cast(int, alpha),  # declared as int, but peft only divides by the rank
        lora_dropout=dropout,
        target_modules=names,
        task_type="CAUSAL_LM",
    )
    gpus = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses a deprecated name from transformers
        torch.manual_seed(seed)
        try:
            adapted: PreTrainedModel = get_peft_model(model, config)
            return adapted
        except ValueError as error:
            raise ConfigError(f"task.lora.target_modules={target_modules}: {first_line(error)}.") from error


def trainable(
    model: PreTrainedModel, lora: LoRA | None, trained_layers: int | None, gradient_checkpointing: bool, seed: int
) -> PreTrainedModel:
    """Prepare a model for training: add new adapters, or unfreeze some or all of its layers."""
    if gradient_checkpointing:
        checkpoint_layers(model)
    if lora is not None:
        return add_lora(model, rank=lora.rank, alpha=lora.alpha, dropout=0.0, target_modules=lora.target_modules, seed=seed)
    train_last_layers(model, trained_layers)
    return model


def train_last_layers(model: PreTrainedModel, num_layers: int | None) -> None:
    """Train only the last num_layers layers and everything after them, without the embeddings; None: train all weights.

    Raises: ConfigError if the model has fewer layers, or if transformers does not mark them.
    """
    model.requires_grad_(True)
    if num_layers is not None:
        key, layers = "task.trained_layers", find_layers(model)
        name = type(model).__name__
        require(bool(layers), key, num_layers, f"the layers of a {name} cannot be told apart; use null.")
        require(num_layers <= len(layers), key, num_layers, f"a {name} has {len(layers)} layers; lower it, or use null.")
        for module in (model.get_input_embeddings(), *layers[: len(layers) - num_layers]):
            module.requires_grad_(False)


def find_layers(model: nn.Module) -> list[nn.Module]:
    """The model's layers, as marked by transformers, in order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def checkpoint_layers(model: nn.Module) -> None:
    """Recompute the layers' activations in the backward pass instead of storing them.

    transformers does this only in training mode, which also enables dropout; here the mode does not matter.
    Raises: ConfigError if transformers does not mark the model's layers.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    def recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    layers = find_layers(model)
    remedy = f"a {type(model).__name__} has no layers that transformers can checkpoint; set it to false."
    require(bool(layers), "task.gradient_checkpointing", True, remedy)
    for layer in layers:
        layer.forward = partial(recomputed, layer.forward)
