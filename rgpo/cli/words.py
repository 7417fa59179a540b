"""Command-line arguments: quoting of names and paths for hydra, old names, and the keys that the user typed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.types import Override, Quote, QuotedString

from rgpo.runtime.former import RENAMED_GROUPS, canonical_name

PATHS = ("data", "eval_data", "model", "adapter", "reward_model", "gold_model", "chat_template")  # of task.source
SWEPT = ("name", *(f"task.source.{name}" for name in PATHS))
LITERAL = (
    "results_dir",
    "resume_from",
    "task.source.system_prompt",
    *SWEPT,
)  # names, paths and texts, taken literally
NAMED = ("results_dir", "name")  # always a folder's name, even null; for other keys null stays null
INTERPOLATION = re.compile(r"(\\*)\$\{")
ESCAPED = re.compile(r"((?:\\\\)*)\\\$\{")  # an escaped interpolation, which OmegaConf reads as text
CHOOSE_WITH = {"task.source": "scale"}  # node of a task -> the config group that sets it
CHOOSE_WITH |= {f"task.{group}": f"{group}@task.{group}" for group in ("sampler", "correction", "policy")}
BANDITS = ("bandit", "bandit_gaussian")
PRESETS = {"kl_coef": "adaptive.coef", "kl_target": "adaptive.kl_target", "kl_factor": "adaptive.factor"}
PRESETS |= {key: f"gae.{key}" for key in ("gamma", "lam", "bootstrap_truncated", "normalize")}
PRESETS |= {"reward_kl_coef": "reward_kl.coef"}


def hydra_form(word: str, sweep: bool = False) -> str:
    """An argument in the form that hydra's grammar requires: values of literal keys are quoted.

    With sweep, commas separate values, unless a file of that full name exists; results_dir is always a single folder.
    """
    key, equals, value = word.partition("=")
    name = key.lstrip("+")
    if name not in LITERAL or not equals:
        return word
    values = value.split(",") if sweep and name in SWEPT and not os.path.lexists(value) else [value]
    return f"{key}={','.join(text if text == 'null' and name not in NAMED else quote(_literal(text)) for text in values)}"


def user_form(item: Override) -> str:
    """The inverse of ``hydra_form`` for one cell of a sweep."""
    word, value = str(item.input_line), item.value()
    if item.key_or_group not in LITERAL or not isinstance(value, str):
        return word
    path = ESCAPED.sub(lambda match: match[1][: len(match[1]) // 2] + "${", value)
    return f"{word.partition('=')[0]}={'???' if path == './???' else path}"


def _literal(text: str) -> str:
    """Escape a text so that OmegaConf does not interpolate it; ??? by itself would mean a missing value."""
    return INTERPOLATION.sub(lambda match: match[1] * 2 + "\\${", "./???" if text == "???" else text)


def quote(text: str) -> str:
    """Quote a text for hydra's grammar."""
    return str(QuotedString(text, Quote.single).with_quotes())


def former_name(key: str, value: str) -> str | None:
    """The message for a key or option of version 0.1, without the leading key=value; None for any other."""
    head, dot, rest = key.partition(".")
    group = head.partition("@")[0]
    if head in RENAMED_GROUPS:
        return f"is now {RENAMED_GROUPS[head]}{dot}{rest}{f'={value}' if value else ''}."
    if not dot and canonical_name(group, value) != value:
        return f"is now {key}={canonical_name(group, value)}."
    if key == "task" and value in BANDITS:
        return "is a measurement and no task now; run python -m rgpo.bandit."
    if key == "kl_spike_threshold":
        return f"is a setting of the report now; use rgpo-report spike_threshold={value}."
    if key == "penalty.reward_kl_coef":
        return f"is now penalty=reward_kl penalty.coef={value}."
    return None


def preset_of(key: str) -> str | None:
    """The preset named by a key presets.x.y, or published.y of version 0.1; None for any other key."""
    head, _, rest = key.partition(".")
    if head == "presets":
        return key
    return f"presets.{PRESETS.get(rest, f'sgd.{rest}')}" if head == "published" else None


def typed_keys(words: Sequence[str], items: Sequence[Override]) -> dict[str, str]:
    """Key -> value as typed, for every key that the overrides set; a dictionary counts as its entries."""
    found: dict[str, str] = {}
    for word, item in zip(words, items, strict=True):
        key = item.key_or_group + (f"@{item.package}" if item.package else "")
        value = None if item.is_delete() else item.value()
        entries = {name: str(entry) for name, entry in flat(value, f"{key}.").items() if not isinstance(entry, Mapping)}
        found |= entries or {key: word.partition("=")[2]}
    return found


def flat(node: object, prefix: str = "") -> dict[str, object]:
    """Dotted key -> value of every entry in a nested mapping, inner mappings included, without _target_."""
    if not isinstance(node, Mapping):
        return {}
    found: dict[str, object] = {}
    for key, value in node.items():
        if key != "_target_":
            found |= {f"{prefix}{key}": value, **flat(value, f"{prefix}{key}.")}
    return found
