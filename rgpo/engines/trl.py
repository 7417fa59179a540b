"""TRL's GRPOTrainer and RLOOTrainer with our gates, second gates and KL penalties instead of their clipped ratio.

    trainer = GatedGRPOTrainer(model, reward_funcs, GRPOConfig(loss_type="grpo", ...), parts="gate=sigmoid", train_dataset=...)

TRL's own loss is called with g(d) A in place of the advantages and a ratio of 1, so that its reduction (``loss_type``), ratio
level (``importance_sampling_level``), masks, vLLM correction, entropy bonus, logs, distributed training and checkpoints are
unchanged. Gates whose bounds depend on a batch see one micro-batch at a time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from rgpo import atomic
from rgpo.core.kl_penalty import Divergence, FixedPenalty
from rgpo.core.sequence import RatioLevel
from rgpo.engines.parts import GateParts, field_defaults, parts_of, refuse_ignored, warn_untried
from rgpo.engines.statistics import Window
from rgpo.errors import ConfigError, require

if TYPE_CHECKING:
    from rgpo.engines.trl_types import Inputs, Trainer
else:
    Trainer = object

TRIED = ("1.16.0",)
STATE = "rgpo.json"  # file in a checkpoint with the state of gate and penalty
REDUCTIONS = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")  # loss types that apply PPO's clip and differ only in the reduction
CURVES = (  # settings that the gate replaces
    *("epsilon", "epsilon_high", "delta", "sapo_temperature_pos", "sapo_temperature_neg"),
    *("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
)
OWN_KEYS = "set the gate's own keys, such as gate.eps_low"


class _Gated(Trainer):
    """Mixin with the code shared by both trainers; must precede the trainer's class."""

    parts: GateParts
    _inputs: Inputs | None = None  # inputs of the loss while it is being computed

    def _begin(self, parts: GateParts) -> None:
        self.parts = parts
        self._window = Window()
        self._observed: tuple[float, float] | None = None  # KL(old || new) and KL to the reference in the last gradient step

    def _compute_loss(self, model: object, inputs: Inputs) -> Tensor:
        """Call TRL's loss with inputs that ``_gate`` rewrites once the log-probabilities are known."""
        self._inputs = dict(inputs)
        try:
            with self._without_own_terms():
                loss = super()._compute_loss(model, self._inputs)
        finally:
            self._inputs = None
        mode = "train" if self.model.training else "eval"
        for name in [name for name in self._metrics[mode] if name.startswith("clip_ratio/")]:
            del self._metrics[mode][name]  # meaningless, since the ratio is 1
        if mode == "train" and self.accelerator.sync_gradients:
            self._measure()
        return loss

    @contextlib.contextmanager
    def _without_own_terms(self) -> Iterator[None]:
        yield

    def _get_per_token_logps_and_entropies(self, *args: object, **kwargs: object) -> tuple[Tensor, Tensor | None, Tensor | None]:
        logps, entropies, aux_loss = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._inputs is None:
            return logps, entropies, aux_loss
        assert entropies is not None  # always computed for a loss
        self._gate(self._inputs, logps, entropies)
        return logps.detach(), entropies, aux_loss

    def _gate(self, inputs: Inputs, logps: Tensor, entropies: Tensor) -> None:
        raise NotImplementedError

    def _measure(self) -> None:
        """Log the diagnostics of a gradient step over all its micro-batches and processes."""
        parts = self.parts
        found = self._window.take(parts.gate, reference=bool(parts.reference_key), accelerator=self.accelerator)
        for name, value in (found | {"kl/coef": parts.penalty.loss_coef}).items():
            self._metrics["train"][name].append(value)
        self._observed = found["kl/old_k3"], found.get("kl/ref_unbiased", 0.0)

    def _generate_and_score_completions(self, inputs: object) -> object:
        """Generate completions, after adapting gate and penalty to the KL of the last gradient step on the previous ones."""
        if self._observed is not None and self.model.training:
            self.parts.observe(*self._observed)
            self._observed = None
        return super()._generate_and_score_completions(inputs)

    def _save_checkpoint(self, model: object, trial: object) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            atomic.write_text(folder / STATE, json.dumps({**self.parts.state_dict(), "observed": self._observed}) + "\n")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        path = None if checkpoint is None else Path(checkpoint) / STATE
        if path is not None and path.exists():
            state = json.loads(path.read_text())
            self.parts.load_state_dict(state)
            self._observed = state["observed"] and tuple(state["observed"])


class GatedGRPOTrainer(_Gated, GRPOTrainer):
    """GRPOTrainer with the loss -g(d) A + coef KL at each token; parts: a GateParts, or rgpo-run arguments.

    ``loss_type`` selects the reduction; ``importance_sampling_level`` or ``ratio`` selects the gate's input. ``beta`` is the same
    as penalty=fixed to the reference with estimator k3, or unbiased with ``use_bias_correction_kl``. A second gate or a penalty
    to the reference makes TRL keep a reference model. Gate and penalty adapt once per generation of completions.

    Raises: ConfigError for settings that the gate replaces or that conflict with it, a KL in the reward, or an exact KL to the
    old policy.
    """

    args: GRPOConfig
    beta: float
    off_policy_mask_threshold: float | None

    def __init__(
        self,
        model: object,
        reward_funcs: object = None,
        args: GRPOConfig | None = None,
        *rest: object,
        parts: GateParts | str | Sequence[str],
        ratio: RatioLevel | None = None,
        **named: object,
    ) -> None:
        warn_untried("trl", TRIED)
        args = GRPOConfig("GatedGRPO") if args is None else args
        self._begin(_with_beta(parts_of(parts, "language"), args))
        _check(args, self.parts)
        level = args.importance_sampling_level
        only = ratio is None or level == "token"
        require(only, "importance_sampling_level", level, "is a second level beside ratio; leave it at token.")
        self._ratio = RatioLevel(level) if ratio is None else ratio
        beta = args.beta
        if beta == 0 and self.parts.reference_key:
            args.beta = 1.0  # TRL loads a reference model only for its own KL term
        try:
            super().__init__(model, reward_funcs, args, *rest, **named)
        finally:
            args.beta = beta

    @contextlib.contextmanager
    def _without_own_terms(self) -> Iterator[None]:
        """Disable TRL's KL term and mask of stale completions, which ``_gate`` already includes."""
        kept = self.beta, self.off_policy_mask_threshold
        self.beta, self.off_policy_mask_threshold = 0.0, None
        try:
            yield
        finally:
            self.beta, self.off_policy_mask_threshold = kept

    def _gate(self, inputs: Inputs, logps: Tensor, entropies: Tensor) -> None:
        """Pass the negative token losses to TRL as advantages, and the current log-probabilities as the old ones."""
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        live = mask.bool()
        old = inputs.get("old_per_token_logps", logps.detach())
        advantages = inputs["advantages"]
        reference = inputs.get("ref_per_token_logps")
        loss, seen = self.parts.losses(
            logps[live],
            old[live],
            (advantages[:, None] if advantages.dim() == 1 else advantages).expand_as(logps)[live],
            logp_ref=None if reference is None else reference[live],
            correction=self._correction(inputs, logps, old, mask),
            sequence_mask=None if self._ratio.kind == "token" else live,
            ratio=self._ratio,
        )
        inputs["advantages"] = torch.zeros_like(logps).masked_scatter(live, -loss)
        inputs["old_per_token_logps"] = logps.detach()
        if self.model.training:
            d_old = (logps - old)[live]
            self._window.add(d_old, d_old if reference is None else (logps - reference)[live], entropies[live], seen)
        elif reference is not None:
            kl_B = self.accelerator.gather(((logps - reference) * mask).sum(1))
            self._metrics["eval"]["kl/ref_sequence"].append(kl_B.mean().item())  # log pi(y)/pi_ref(y), nats

    def _correction(self, inputs: Inputs, logps: Tensor, old: Tensor, mask: Tensor) -> Tensor | None:
        """TRL's factor of each token (n,): vLLM correction times mask of stale completions; None if it uses neither."""
        factors = []
        if "importance_sampling_ratio" in inputs:
            ratio = inputs["importance_sampling_ratio"]
            factors.append(ratio)
            inputs["importance_sampling_ratio"] = torch.ones_like(ratio)
        if (threshold := self.args.off_policy_mask_threshold) is not None:
            sampler = inputs.get("sampling_per_token_logps", old)
            factors.append(self.get_off_policy_mask(inputs["advantages"].view(len(mask), -1), logps, sampler, mask, threshold))
        if not factors:
            return None
        whole = torch.ones_like(logps)
        for factor in factors:
            whole = whole * factor
        return whole[mask.bool()]


class GatedRLOOTrainer(_Gated, RLOOTrainer):
    """RLOOTrainer with the loss -g(d) A per completion, d the sum of its log ratios; ``beta`` remains TRL's KL in the reward.

    Raises: ConfigError for settings that the gate replaces, a second gate, a KL penalty, or a gate that uses token probabilities.
    """

    def __init__(
        self,
        model: object,
        reward_funcs: object = None,
        args: RLOOConfig | None = None,
        *rest: object,
        parts: GateParts | str | Sequence[str],
        **named: object,
    ) -> None:
        warn_untried("trl", TRIED)
        args = RLOOConfig("GatedRLOO") if args is None else args
        self._begin(parts_of(parts, "language"))
        refuse_ignored(args, CURVES, field_defaults(RLOOConfig), OWN_KEYS)
        penalty = self.parts.penalty
        if penalty.loss_coef or penalty.reward_coef:
            raise ConfigError("penalty: RLOOTrainer has its KL in the reward; set beta in RLOOConfig, and penalty=none.")
        self.parts.refuse_reference("RLOOTrainer")
        self.parts.refuse_logp_old("RLOOTrainer", "use GatedGRPOTrainer")
        super().__init__(model, reward_funcs, args, *rest, **named)

    def _gate(self, inputs: Inputs, logps: Tensor, entropies: Tensor) -> None:
        """Pass the negative completion losses to TRL as advantages, and the current log-probabilities as the old ones."""
        mask = inputs["completion_mask"]
        logp = (logps * mask).sum(1)
        old = inputs["old_logps"]
        loss, seen = self.parts.losses(logp, old, inputs["advantages"])
        inputs["advantages"], inputs["old_logps"] = -loss, logp.detach()
        if self.model.training:
            entropy = (entropies * mask).sum(1) / mask.sum(1).clamp(min=1)
            self._window.add(logp - old, logp - old, entropy, seen)


def _with_beta(parts: GateParts, args: GRPOConfig) -> GateParts:
    """The parts, with TRL's beta as the penalty if it is set.

    Raises: ConfigError if the parts already have a penalty, or if the estimator does not fit the ratio level.
    """
    if args.beta == 0:
        return parts
    if parts.penalty.loss_coef or parts.penalty.reward_coef:
        raise ConfigError(f"beta={args.beta}: is a second KL penalty beside {parts.describe()['penalty']}; set beta=0.")
    level = args.importance_sampling_level
    biased = not args.use_bias_correction_kl
    require(
        biased or level == "token", "use_bias_correction_kl", "True", "needs importance_sampling_level=token; set it to False."
    )
    estimator = "k3" if biased else "unbiased"
    return replace(parts, penalty=FixedPenalty(coef=args.beta, estimator=estimator, anchor="reference"))


def _check(args: GRPOConfig, parts: GateParts) -> None:
    """Raises: ConfigError for settings that would be ignored or are meaningless with a gate."""
    remedy = f"is a curve of its own; choose the reduction, one of {', '.join(REDUCTIONS)}, and the curve with gate=."
    require(args.loss_type in REDUCTIONS, "loss_type", args.loss_type, remedy)
    refuse_ignored(args, CURVES, field_defaults(GRPOConfig), OWN_KEYS)
    penalty, divergence = parts.penalty, parts.penalty.divergence
    if penalty.reward_coef:
        raise ConfigError(
            "penalty=reward_kl: GRPOTrainer has no KL in the reward; use penalty=fixed, or GatedRLOOTrainer's beta."
        )
    if divergence is not None and divergence == Divergence(estimator="exact", anchor="old"):
        raise ConfigError("penalty.estimator=exact: GRPOTrainer stores no distributions; use penalty.estimator=unbiased.")
    whole = args.top_entropy_quantile == 1 or not penalty.loss_coef
    require(whole, "top_entropy_quantile", args.top_entropy_quantile, "would mask the KL penalty, too; use 1.0, or penalty=none.")
