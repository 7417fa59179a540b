"""Typed keys that the chosen combination would ignore are errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from rgpo.cli.hints import Node
from rgpo.errors import ConfigError
from rgpo.learning.types import Requirements

Rule = tuple[tuple[str, ...], str]  # keys, and why they would be ignored


def refuse_unused(typed: Mapping[str, str], config: Node, requirements: Requirements) -> None:
    """Raises: ConfigError for the first typed key that would be ignored, with its value and the remedy."""
    for keys, why in _rules(config, requirements):
        for key in keys:
            if key in typed:
                raise ConfigError(f"{key}={typed[key]}: would be ignored; {why}.")


def _rules(config: Node, requirements: Requirements) -> Iterator[Rule]:
    task, policy = _node(config, "task"), _node(_node(config, "task"), "policy")
    if config["num_iterations"] is not None and config["total_env_steps"] is not None:
        why = f"num_iterations={config['num_iterations']} determines the length; set num_iterations, or num_iterations=null"
        yield ("total_env_steps",), why
    if config["eval_every"] == 0:
        yield ("task.num_eval_episodes", "task.num_eval_prompts", "task.num_samples"), "eval_every=0 turns evaluation off"
    for what in ("observation", "reward"):
        if task.get(f"normalize_{what}") is False:
            yield (f"task.clip_{what}",), f"only normalized {what}s are clipped; set task.normalize_{what}=true"
    if policy.get("orthogonal_init") is False:
        yield ("task.policy.policy_gain", "task.policy.value_gain"), "only orthogonal initialization has gains"
    if not requirements.critic:
        critic = ("vf_coef", "value_clip", "clip_jointly", "critic_epochs", "critic_minibatches", "critic_lr")
        keys = "task.center_scores", *(f"update.{key}" for key in critic)
        yield keys, "this advantage has no critic; choose advantage=gae"
    if _node(config, "update").get("max_grad_norm", 0) is None:
        yield ("update.clip_jointly",), "update.max_grad_norm=null clips nothing"
    if requirements.pairs:
        whole = ["ratio", "ratio_clip", "reduction", "correction", "decoupled", "missing_eos_penalty"]
        whole += ["mask_truncated_completions"]
        yield tuple(f"task.{key}" for key in whole), "this algorithm compares whole answers"
    if (
        config.get("gate_combination") is not None
        and _is(config, "ref_gate", "Open")
        and not _is(config, "gate_combination", "Geometric")
    ):
        yield ("gate_combination",), "there is no second gate to combine; choose one with gate@ref_gate="


def _node(config: Node, key: str) -> Node:
    value = config.get(key)
    return cast(Node, value) if isinstance(value, Mapping) else {}


def _is(config: Node, key: str, name: str) -> bool:
    return str(_node(config, key).get("_target_", "")).endswith(f".{name}")
