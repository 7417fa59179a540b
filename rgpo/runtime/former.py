"""Conversion of old names, keys and configurations to the current form, so that old results and users' yaml can be read."""

from __future__ import annotations

from collections.abc import Mapping

RENAMED_COLUMNS = {"language/dead_group_share": "language/zero_variance_group_share"}
RENAMED_COLUMNS |= {
    f"gradvar/{when}_relative": f"gradvar/{when}_noise_share" for when in ("before", "after")
}  # the old name was a misnomer
RENAMED_GROUPS = {"dual": "gate_combination"}
RENAMED_OPTIONS = {
    "algo": {"rgpo_signed": "rgpo_sign_aware"},
    "gate": {"sigmoid_signed": "sign_aware_sigmoid", "adaptive_signed": "adaptive_sign_aware"},
}
RENAMED_CLASSES = {"rgpo.gates.SigmoidSigned": "rgpo.gates.SignAwareSigmoid"}
MOVED_MODULES = {
    "rgpo.adaptive": "rgpo.core.adaptive_gate",
    "rgpo.advantages": "rgpo.core.advantages",
    "rgpo.core.gates": "rgpo.gates",  # the public module gives each gate its only name
    "rgpo.language_advantages": "rgpo.core.advantages",
    "rgpo.objective": "rgpo.core.surrogate",
    "rgpo.penalties": "rgpo.core.kl_penalty",
    "rgpo.policies.mlp": "rgpo.control.mlp",
    "rgpo.policies.samplers": "rgpo.language.policy.samplers",
    "rgpo.tasks.bandit": "rgpo.bandit.laws",
    "rgpo.tasks.control": "rgpo.control.task",
    "rgpo.tasks.embedded.source": "rgpo.language.sources.embedded.source",
    "rgpo.tasks.hub": "rgpo.language.sources.hub",
    "rgpo.tasks.language": "rgpo.language.task",
    "rgpo.tasks.smollm2": "rgpo.language.sources.smollm2",
    "rgpo.updates.natural_gradient": "rgpo.learning.natural_gradient",
    "rgpo.updates.sgd": "rgpo.learning.sgd",
}
KL_IN_LOSS = ("rgpo.core.kl_penalty.FixedPenalty", "rgpo.core.kl_penalty.AdaptivePenalty")
FORMER_KL = {  # language task or not -> the penalized divergence before it became a setting
    True: {"estimator": "k3", "anchor": "reference"},
    False: {"estimator": "exact", "anchor": "old"},
}
NO_PENALTY, REWARD_KL = "rgpo.core.kl_penalty.NoPenalty", "rgpo.core.kl_penalty.RewardKL"
DROPPED = ("published", "presets", "kl_spike_threshold")  # keys whose values affect a run only through other keys, or not at all
LANGUAGE = "rgpo.language.task.Language"
ADDED_TO_CHAT = dict.fromkeys(("adapter", "chat_template", "chat_template_kwargs", "eval_data", "system_prompt")) | {
    "first_turn": False
}
ADDED: dict[str, dict[str, object]] = {  # class ("": top level) -> keys added since, and values that keep its behavior
    "": {
        "algorithm": {"_target_": "rgpo.learning.algorithm.GateAlgorithm"},
        "resume_from": None,
        "save_model": False,
        "on_failure": "continue",
        "pause_at": None,
        "design": None,
    },
    "rgpo.control.task.Control": {"wrappers": [], "action_bounds": "clip", "staleness": 0, "correction_cap": None},
    "rgpo.core.advantages.GAE": {"normalize": "minibatch"},
    "rgpo.learning.sgd.SGD": {"clip_jointly": True, "target_kl": None},
    "rgpo.language.sources.hub.Hub": ADDED_TO_CHAT,
    "rgpo.language.sources.smollm2.SmolLM2": ADDED_TO_CHAT,
    LANGUAGE: {
        "center_scores": False,
        "parallel": "ddp",
        "sampler": {"_target_": "rgpo.language.policy.samplers.Own", "correction_cap": None},
        "correction": {"_target_": "rgpo.core.sequence.Correction", "level": "none", "outside": "clamp"}
        | dict.fromkeys(("low", "high", "max_kl")),
        "ratio_clip": None,
        "decoupled": False,
        "reward": None,
        "missing_eos_penalty": None,
        "mask_truncated_completions": False,
        "skip_special_tokens": True,
        "stop_tokens": None,
        "stop_strings": [],
        "trained_layers": None,
        "log_rollouts_every": 0,
    },
}


def canonical_target(path: str) -> str:
    """The current path of a class, given its current or an old one."""
    module, dot, name = path.rpartition(".")
    moved = f"{MOVED_MODULES.get(module, module)}{dot}{name}"
    return RENAMED_CLASSES.get(moved, moved)


def canonical_name(group: str, name: str) -> str:
    """The current name of an option of a config group."""
    return RENAMED_OPTIONS.get("gate" if group == "ref_gate" else group, {}).get(name, name)


def canonical_config(config: Mapping[str, object]) -> dict[str, object]:
    """Convert a stored configuration (this version or 0.1) to current names; newer keys get values that keep its behavior."""
    top = {RENAMED_GROUPS.get(key, key): value for key, value in config.items() if key not in DROPPED}
    _move_normalization(top)
    node = _canonical_node(top, ADDED[""])
    penalty, choices = _mapping(node.get("penalty")), _mapping(node.get("choices"))
    if penalty.get("_target_") in KL_IN_LOSS:
        node["penalty"] = FORMER_KL[_mapping(node.get("task")).get("_target_") == LANGUAGE] | penalty
    coef = penalty.get("reward_kl_coef", 0.0) if penalty.get("_target_") == NO_PENALTY else 0.0
    if "reward_kl_coef" in penalty:
        node["penalty"] = {"_target_": REWARD_KL, "coef": coef} if coef else {"_target_": NO_PENALTY}
    if choices:
        named = {RENAMED_GROUPS.get(key, key): value for key, value in choices.items()}
        named = {key: canonical_name(key, value) if isinstance(value, str) else value for key, value in named.items()}
        node["choices"] = {"scale": "none"} | named | ({"penalty": "reward_kl"} if coef else {})
    return node


def flat_config(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Dotted key -> value of every entry that is not a mapping, or is an empty one."""
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flat_config(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _canonical_node(node: Mapping[str, object], added: Mapping[str, object]) -> dict[str, object]:
    found = {key: _canonical(value) for key, value in node.items()}
    return {key: value for key, value in added.items() if key not in found} | found


def _canonical(value: object) -> object:
    if isinstance(value, list):
        return [_canonical(x) for x in value]
    if not isinstance(value, Mapping):
        return value
    if "_target_" not in value:
        return _canonical_node(value, {})
    target = canonical_target(str(value["_target_"]))
    return _canonical_node(value, ADDED.get(target, {})) | {"_target_": target}


def _move_normalization(top: dict[str, object]) -> None:
    """Rename ``update.normalize_advantage``, found in the first results, to ``advantage.normalize``."""
    update, advantage = _mapping(top.get("update")), _mapping(top.get("advantage"))
    if "normalize_advantage" in update:
        normalize = update.pop("normalize_advantage")
        top["update"], top["advantage"] = update, {"normalize": normalize} | advantage


def _mapping(node: object) -> dict[str, object]:
    return dict(node) if isinstance(node, Mapping) else {}
