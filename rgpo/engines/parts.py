"""The parts that other frameworks' trainers take from us (gates and KL penalty), given as rgpo-run arguments or as objects.

GateParts(gate=rgpo.gates.Sigmoid(sharpness=10.0))
compose_parts("gate=sigmoid gate.sharpness=20 penalty=fixed")
"""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import metadata
from typing import TYPE_CHECKING, cast

from rgpo.core.gate import GateLike
from rgpo.core.gates import Open
from rgpo.core.kl_penalty import NoPenalty, Penalty
from rgpo.core.sequence import RatioLevel
from rgpo.core.surrogate import Combination, Detached, GateObjective, Geometric, check_combination
from rgpo.errors import ConfigError
from rgpo.learning.algorithm import describe_part
from rgpo.learning.samples import PolicyOutput, Samples
from rgpo.learning.types import State

if TYPE_CHECKING:
    from torch import Tensor

    from rgpo.learning.loss import GateInputs

AXES = ("gate", "ref_gate", "gate_combination", "penalty")
GROUPS = ("algo", *AXES)  # groups that the words may set; the trainer's own arguments set everything else
ONE_GATE = "algo=dapo"  # has neither a second gate nor a penalty, so that gate=clip means only a clip
TASKS = {"language": "task=qwen_rlhf", "control": "task=cartpole"}  # a task whose presets are used to compose the words


@dataclass(kw_only=True)
class GateParts:
    """Gates and KL penalty of one objective, with their state.

    Raises: ConfigError if the gate has zero gradient, or if a second gate would be ignored.
    """

    gate: GateLike
    ref_gate: GateLike = field(default_factory=Open)
    gate_combination: Combination = field(default_factory=Detached)
    penalty: Penalty = field(default_factory=NoPenalty)
    config: Mapping[str, object] = field(default_factory=dict)  # the nodes from which the parts were built, and ``choices``

    def __post_init__(self) -> None:
        check_combination(self.gate_combination, self.gate, self.ref_gate)
        if isinstance(self.gate, Open):
            raise ConfigError("gate=open: has zero gradient; use it only for gate@ref_gate.")

    @property
    def reference_key(self) -> str:
        """The configuration key that requires a reference policy, or ""."""
        if not isinstance(self.ref_gate, Open):
            return "gate@ref_gate"
        if isinstance(self.gate_combination, Geometric):
            return "gate_combination"
        divergence = self.penalty.divergence
        return "penalty.anchor" if divergence is not None and divergence.anchor == "reference" else ""

    def losses(
        self,
        logp: Tensor,
        logp_old: Tensor,
        advantage: Tensor,
        *,
        logp_ref: Tensor | None = None,
        correction: Tensor | None = None,
        sequence_mask: Tensor | None = None,
        ratio: RatioLevel | None = None,
        kl_old: Tensor | None = None,
    ) -> tuple[Tensor, GateInputs]:
        """Per-sample losses -g A + coef KL (n,) and the gates' inputs; arguments (n,) as in ``rgpo.learning.samples.Samples``."""
        from rgpo.learning.loss import sample_losses

        samples = Samples(
            logp_old, logp_ref, advantage, advantage, advantage, correction=correction, sequence_mask=sequence_mask, ratio=ratio
        )  # the critic's fields are unused; advantage only fills them
        return sample_losses(
            PolicyOutput(logp, None, None, kl_old),
            samples,
            objective=GateObjective(gate=self.gate, ref_gate=self.ref_gate, combine=self.gate_combination),
            divergence=self.penalty.divergence,
            kl_coef=self.penalty.loss_coef,
        )

    def describe(self) -> dict[str, str]:
        """Axis -> class and parameters of each part."""
        return {axis: describe_part(getattr(self, axis)) for axis in AXES}

    def observe(self, kl_old: float, kl_ref: float) -> None:
        """Adapt gate and penalty after an update, given KL(old || new) and, if there is one, the KL to the reference (nats)."""
        divergence = self.penalty.divergence
        self.penalty.observe(kl_ref if divergence is not None and divergence.anchor == "reference" else kl_old)
        self.gate.observe(kl_old)

    def state_dict(self) -> State:
        return {"gate": self.gate.state_dict(), "penalty": self.penalty.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.gate.load_state_dict(cast(dict[str, float], state["gate"]))
        self.penalty.load_state_dict(cast(dict[str, float], state["penalty"]))

    def refuse_reference(self, engine: str) -> None:
        """Raises: ConfigError if a part needs a reference policy, which the engine does not provide."""
        if key := self.reference_key:
            remedy = {"gate@ref_gate": "gate@ref_gate=open", "gate_combination": "gate_combination=detached"}
            wanted = remedy.get(key, "penalty.anchor=old")
            raise ConfigError(f"{key}: needs a reference policy, which {engine} does not give its policy loss; use {wanted}.")

    def refuse_logp_old(self, engine: str, remedy: str) -> None:
        """Raises: ConfigError if the gate uses log pi_old of each token, which the engine stores only for whole completions."""
        if self.gate.needs_logp_old:
            text = f"gate={self.describe()['gate']}: reads the old log-probability of a token, which {engine} does not keep"
            raise ConfigError(f"{text}; {remedy}.")


def compose_parts(words: str | Sequence[str], *, kind: str, config_dir: str | None = None) -> GateParts:
    """Build the parts selected by rgpo-run arguments: algo, gate, gate@ref_gate, gate_combination, penalty and their keys.

    kind: language or control, which determines the presets. config_dir: a folder with your own options (gate/, ...).

    Raises: ConfigError if an argument cannot be composed, would be ignored or belongs to the trainer, or if no gate is selected.
    """
    from rgpo.cli.build import make
    from rgpo.cli.checks import plain
    from rgpo.cli.overrides import hydra_on
    from rgpo.cli.targets import make_importable
    from rgpo.cli.unused import refuse_unused
    from rgpo.cli.words import typed_keys
    from rgpo.learning.types import Requirements

    try:
        own = shlex.split(words) if isinstance(words, str) else list(words)
    except ValueError as error:
        raise ConfigError(f"{words}: cannot be split into words ({error}); give a list of words.") from error
    with hydra_on(config_dir) as composer:
        parsed = composer.parse(own)
        for word, item in zip(own, parsed, strict=True):
            if item.is_sweep_override():
                raise ConfigError(f"{word}: is a sweep; an engine trains with one objective.")
        typed = typed_keys(own, parsed)
        for key, value in typed.items():
            if key.partition(".")[0].partition("@")[0] not in GROUPS:
                raise ConfigError(f"{key}={value}: is the trainer's own to set; here the words are {', '.join(GROUPS)}.")
        if not {"algo", "gate"} & typed.keys():
            raise ConfigError(f"{' '.join(own) or 'parts'}: names no gate; begin with gate= or algo=.")
        composed, choices = composer([TASKS[kind], *(() if "algo" in typed else (ONE_GATE,)), *own])
    config = plain(composed)
    make_importable(config_dir)
    hints = {"gate": GateLike, "ref_gate": GateLike, "gate_combination": Combination, "penalty": Penalty}
    for axis in AXES:
        if config.get(axis) is None:
            raise ConfigError(f"{axis}=null: algo={choices.get('algo')} has no {axis}; choose an algorithm of the gate family.")
    refuse_unused(typed, config, Requirements(gamma=1.0, critic=True, num_minibatches=1))
    parts = {axis: make(axis, config[axis], hints[axis]) for axis in AXES}
    groups = {"algo": "algo", **{axis: axis for axis in AXES}, "ref_gate": "gate@ref_gate"}
    nodes = {axis: config[axis] for axis in AXES}
    return GateParts(**parts, config={**nodes, "choices": {key: choices.get(group) for key, group in groups.items()}})


def parts_of(given: GateParts | str | Sequence[str], kind: str) -> GateParts:
    """The given parts, built from rgpo-run arguments if necessary."""
    return given if isinstance(given, GateParts) else compose_parts(given, kind=kind)


def refuse_ignored(args: object, names: Sequence[str], defaults: Mapping[str, object], remedy: str) -> None:
    """Raises: ConfigError if a setting that our loss replaces differs from the trainer's default."""
    for name in names:
        value = getattr(args, name, defaults.get(name))
        if name in defaults and value != defaults[name]:
            raise ConfigError(f"{name}={value}: would be ignored, because the gate takes its place; {remedy}.")


def field_defaults(config: type) -> dict[str, object]:
    """Field name -> default of a dataclass."""
    return {entry.name: entry.default for entry in fields(config)}


def warn_untried(package: str, tried: Sequence[str]) -> None:
    """Warn if the installed version of an engine is not one that we tested."""
    found = metadata.version(package)
    if found not in tried:
        text = f"{package} {found}: rgpo.engines was tried with {', '.join(tried)}; compare a short run with gate=clip."
        warnings.warn(text, stacklevel=3)
