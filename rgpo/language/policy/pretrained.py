"""Loading of causal language models from a folder or the hub, checks that they can be trained safely, and LoRA.

A hub id is downloaded to a folder first, without pickle weights, so that both take one path. torch is imported on loading only.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rgpo.errors import ConfigError, first_line, require

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.py"]  # downloaded from the hub; no pickle
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def require_packages(key: str, *names: str, extra: str = "llm") -> None:
    """Raises: ConfigError, with the pip command, if a package of an extra is missing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{key}: needs the package {', '.join(missing)}; install it with `pip install rgpo[{extra}]`.")


def check_path(key: str, path_or_id: str, trust_remote_code: bool) -> None:
    """Check the files of a model's folder before it is loaded; a hub id is not looked up.

    Raises: ConfigError if the folder does not exist or ``check_folder`` rejects it.
    """
    require(path_or_id not in ("", "???"), key, path_or_id, "is not set; give a folder or a hub id.")
    folder = Path(path_or_id).expanduser()
    if folder.exists():
        check_folder(key, folder, trust_remote_code)
    elif folder.is_absolute() or path_or_id.startswith((".", "~")):
        raise ConfigError(f"{key}={path_or_id}: there is no such folder; give another or a hub id.")


def check_folder(key: str, folder: Path, trust_remote_code: bool) -> None:
    """Raises: ConfigError if config.json, tokenizer or safetensors are missing, or the model would run code of its own."""
    require(folder.is_dir(), key, folder, "is not a folder; give the one that holds config.json.")
    require((folder / "config.json").is_file(), key, folder, "has no config.json; give a folder saved by save_pretrained.")
    require(
        any((folder / name).is_file() for name in TOKENIZERS),
        key,
        folder,
        f"has no tokenizer ({', '.join(TOKENIZERS)}); save the model's tokenizer there too.",
    )
    for name in ("config.json", "tokenizer_config.json"):
        own_code = (folder / name).is_file() and "auto_map" in _read_json(key, folder / name)
        require(
            trust_remote_code or not own_code,
            key,
            folder,
            f"{name} would run Python code of the model's authors (auto_map); set trust_remote_code=true if you trust them.",
        )
    _check_weights(key, folder)


def _check_weights(key: str, folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(_read_json(key, index).get("weight_map", {}).values()))
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        require(not missing and bool(shards), key, folder, f"lacks weights listed in its index ({', '.join(missing[:3])}).")
    elif not (folder / "model.safetensors").is_file():
        pickles = [file.name for pattern in PICKLES for file in folder.glob(pattern)]
        if pickles:
            raise ConfigError(
                f"{key}={folder}: has only pickle weights ({sorted(pickles)[0]}), which can run code when read; "
                "convert them to model.safetensors."
            )
        raise ConfigError(f"{key}={folder}: has no model.safetensors; give a folder saved by save_pretrained.")


def _read_json(key: str, file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}={file.parent}: {file.name} cannot be read ({first_line(error)}).") from error
    require(isinstance(found, dict), key, file.parent, f"{file.name} is not an object.")
    return dict(found)


def resolve_folder(key: str, path_or_id: str, trust_remote_code: bool) -> Path:
    """The checked folder of a path, or of a hub id, downloaded into Hugging Face's cache at first use.

    Raises: ConfigError if it cannot be found, downloaded or trained safely.
    """
    check_path(key, path_or_id, trust_remote_code)
    folder = Path(path_or_id).expanduser()
    if not folder.exists():
        folder = fetch_from_hub(key, path_or_id, allow_patterns=FILES, ignore_patterns=["*/*"])
        check_folder(key, folder, trust_remote_code)
    return folder


def fetch_from_hub(key: str, repository: str, **options: Any) -> Path:
    """huggingface_hub.snapshot_download(repository, **options), which falls back to its cache when the hub cannot be reached.

    Raises: ConfigError if neither has the repository.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, **options))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{key}={repository}: is not a local folder and cannot be downloaded from the hub ({first_line(error)}); "
            "check the name and the network, or give the path of a local copy."
        ) from error


def resolve_device(name: str) -> torch.device:
    """The device of a name; auto is the current GPU if there is one, else the CPU.

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
    trust_remote_code: bool = False,
    attn_implementation: str = "sdpa",
    device: str = "auto",
    key: str = "task.source.model",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(AutoModelForCausalLM in eval mode, AutoTokenizer); every weight comes from the files.

    Raises: ConfigError if the model does not exist, lacks config, tokenizer or weights, has only pickle weights, or would run
        code of its own.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    require(dtype in DTYPES, "task.source.dtype", dtype, f"choose one of {', '.join(DTYPES)}.")
    require(
        attn_implementation in ATTENTIONS, "task.source.attn_implementation", attn_implementation, f"choose one of {ATTENTIONS}."
    )
    folder = resolve_folder(key, str(path_or_id), trust_remote_code)
    place = resolve_device(device)
    tokenizer: PreTrainedTokenizerBase = load_pretrained(key, folder, AutoTokenizer, trust_remote_code=trust_remote_code)
    model = load_model(
        key,
        folder,
        AutoModelForCausalLM,
        dtype,
        place,
        trust_remote_code=trust_remote_code,
        attn_implementation=attn_implementation,
    )
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
    """auto.from_pretrained(folder, **options) from local files, without progress bars.

    Raises: ConfigError if the files cannot be loaded.
    """
    from safetensors import SafetensorError

    try:
        with quiet():
            return auto.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{key}={folder}: cannot be loaded ({type(error).__name__}: {first_line(error)}).") from error


def load_model(key: str, folder: Path, auto: Any, dtype: str, device: torch.device, **options: Any) -> PreTrainedModel:
    """auto.from_pretrained(folder, **options) in eval mode on a device, with every weight from the folder's safetensors.

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
    """The greatest number of tokens that a model can read, or None if its config names none (ALiBi, Mamba, Bloom)."""
    longest = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None


def add_lora(
    model: PreTrainedModel, *, rank: int, alpha: float, dropout: float, target_modules: str | Sequence[str], seed: int
) -> PreTrainedModel:
    """A peft model with y = W x + (alpha / rank) B A dropout(x) in the target modules; A from the seed, B = 0.

    target_modules: names, or all-linear. The global generators keep their state. Hu et al., "LoRA", 2021.
    Raises: ConfigError if a target module does not exist.
    """
    import torch

    require_packages("task.lora", "peft")
    from peft import LoraConfig, get_peft_model

    names = target_modules if isinstance(target_modules, str) else list(target_modules)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # declared as int, but peft only divides it
        lora_dropout=dropout,
        target_modules=names,
        task_type="CAUSAL_LM",
    )
    gpus = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses a deprecated name of transformers
        torch.manual_seed(seed)
        try:
            adapted: PreTrainedModel = get_peft_model(model, config)
            return adapted
        except ValueError as error:
            raise ConfigError(f"task.lora.target_modules={target_modules}: {first_line(error)}.") from error


def checkpoint_layers(model: nn.Module) -> None:
    """Compute the layers' activations again in the backward pass instead of storing them.

    transformers does so in training mode only, which also switches dropout on; here the mode does not matter.
    Raises: ConfigError if transformers does not mark the model's layers.
    """
    import torch
    from torch.utils.checkpoint import checkpoint
    from transformers.modeling_layers import GradientCheckpointingLayer

    def recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    remedy = f"a {type(model).__name__} has no layers that transformers can checkpoint; set it to false."
    require(bool(layers), "task.gradient_checkpointing", True, remedy)
    for layer in layers:
        layer.forward = partial(recomputed, layer.forward)  # type: ignore[method-assign]
