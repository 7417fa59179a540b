"""Definitions shared by the runner, which writes results, and the report, which reads them: columns, metrics, axes.

A row is one iteration (collect + learn). Provenance columns are strings (dictionary-encoded) or int64, metrics are float32.
Metrics under ``epoch/`` are lists, one entry per pass over the batch. A metric that is in neither GLOSSARY nor the run's own
``metrics`` is refused when it is logged. NaN means "not measured in this iteration".
"""

from __future__ import annotations

from typing import NamedTuple

AXES = ("gate", "ref_gate", "gate_combination", "advantage", "penalty", "update")  # config groups of the gate family
NOT_IDENTITY = (  # config keys that do not change which experiment a run belongs to; num_threads changes rounding only
    *("name", "results_dir", "num_threads", "memory_gb", "plan", "force", "checkpoint_every_s", "exports", "metrics", "tags"),
    *("save_model", "on_failure", "pause_at", "design"),
)

PROVENANCE = ("run_id", "task", "scale", "algo", "gate", "config_hash", "git_sha")  # dictionary-encoded strings
COUNTERS = ("seed", "attempt", "iteration", "env_steps")  # int64; attempt counts the starts of a run from 1


class Metric(NamedTuple):
    """An entry of the glossary."""

    unit: str
    meaning: str


SAMPLES = {  # columns of samples.parquet, completions of held-out prompts: text, whole, number or yes/no
    "run_id": "text",
    "algo": "text",
    "scale": "text",
    "seed": "whole",
    "iteration": "whole",  # 0: the reference policy
    "prompt_id": "whole",  # constant for a prompt over the whole run
    "prompt": "text",
    "completion": "text",
    "proxy": "number",  # score of the reward model
    "gold": "number",  # score of the gold reward model, which no policy is trained on; NaN if there is none
    "kl_ref": "number",  # log pi(y)/pi_ref(y), nats per completion
    "length": "whole",  # tokens
    "finished": "yes/no",  # false: cut by the length limit
}

ROLLOUTS = {  # columns of rollouts.parquet, completions that were learned from
    "run_id": "text",
    "algo": "text",
    "scale": "text",
    "seed": "whole",
    "iteration": "whole",
    "completion_id": "whole",  # index in the rollout; completions of a prompt are adjacent
    "prompt": "text",
    "completion": "text",  # including special tokens and the token that ended it
    "reward": "number",  # without any KL penalty
    "advantage": "number",  # mean over its tokens, before any normalization; NaN if the algorithm has none
    "kl_ref": "number",  # log pi(y)/pi_ref(y), nats per completion
    "length": "whole",  # tokens
    "finished": "yes/no",  # false: cut by the length limit
}

_SIDES = {"pos": "samples with advantage >= 0", "neg": "samples with advantage < 0"}


def _by_sign(group: str, what: str) -> dict[str, Metric]:
    return {
        f"{group}/{side}_{stat}": Metric("1", f"{stat} of {what} over {samples}, after the last epoch")
        for side, samples in _SIDES.items()
        for stat in ("mean", "q05", "q50", "q95")
    }


def _phases() -> dict[str, Metric]:
    """Wall and CPU seconds of each phase of an iteration; CPU seconds include all threads of the process."""
    phases = {
        "collect": "the rollout",
        "generate": "sampling completions, a part of the rollout",
        "score": "the reward model, a part of the rollout",
        "logprobs": "old and reference log-probabilities, a part of the rollout",
        "update": "advantages and update, including the evaluation of the batch after each epoch",
        "diagnostics": "the statistics of ratios, gates and weights",
        "gradvar": "the gradient-variance estimate",
        "evaluate": "evaluation episodes",
        "iteration": "the whole iteration",
    }
    return {
        f"time/{phase}_{end}": Metric("s", f"{clock} time of {what}")
        for phase, what in phases.items()
        for end, clock in (("s", "wall"), ("cpu_s", "CPU"))
    }


EVALUATED = {  # suffixes of a score's metrics on held-out prompts
    "_mean": "mean score",
    "_se": "standard error over prompts of the mean score",
    "_change": "mean over prompts of policy minus reference in score",
    "_change_se": "standard error of the mean change in score",
}
GLOSSARY: dict[str, Metric] = {
    "return/train_mean": Metric("reward", "mean raw, undiscounted return of the episodes that ended in this rollout"),
    "return/train_std": Metric("reward", "standard deviation of the same returns"),
    "return/num_episodes": Metric("episodes", "episodes that ended in this rollout"),
    "return/length_mean": Metric("steps", "mean length of the same episodes"),
    "return/num_restarted": Metric(
        "episodes", "begun anew because a resume could not restore them: not bit for bit; NaN if none"
    ),
    "return/eval_mean": Metric("reward", "mean raw return of deterministic evaluation episodes (after the update)"),
    "return/eval_std": Metric("reward", "standard deviation of the evaluation returns over episodes"),
    "return/eval_num_cut": Metric(
        "episodes", "evaluation episodes that were cut after 10,000 steps, so far from their end; NaN if none"
    ),
    "reward/train_mean": Metric("score", "mean score of the iteration's completions by the reward model, without any KL"),
    "reward/train_std": Metric("score", "standard deviation of the same scores"),
    "reward/offset": Metric("score", "mean score of the first rollout, which is subtracted from all scores before values"),
    **{
        f"reward/eval_{column}{what}": Metric("score", f"{meaning} of the {model} on held-out prompts, after the update")
        for column, model in (("proxy", "reward model"), ("gold", "gold reward model"))
        for what, meaning in EVALUATED.items()
    },
    "sampler/log_ratio_abs_mean": Metric("nats", "mean |log pi_old - log pi_sampler|: rounding, another engine, or staleness"),
    "sampler/log_ratio_abs_max": Metric("nats", "largest of the same"),
    "language/num_tokens": Metric("tokens", "completion tokens of the iteration"),
    "language/num_prompt_tokens": Metric("tokens", "prompt tokens of the iteration"),
    "language/length_mean": Metric("tokens", "mean length of its completions"),
    "language/truncated_share": Metric("fraction", "share of its completions cut by the length limit"),
    "language/zero_variance_group_share": Metric("fraction", "share of its prompts whose completions all have the same score"),
    "kl/old_exact": Metric("nats", "mean over states of KL(old || new) in closed form, after the last epoch"),
    "kl/old_k1": Metric("nats", "mean of -d over the batch, d = log ratio: unbiased for KL(old || new), may be negative"),
    "kl/old_k1_se": Metric("nats", "standard error of kl/old_k1 (samples treated as independent)"),
    "kl/old_k3": Metric("nats", "mean of exp(d) - 1 - d: unbiased for KL(old || new), never negative"),
    "kl/old_k3_se": Metric("nats", "standard error of kl/old_k3 (samples treated as independent)"),
    "kl/old_k2": Metric("nats", "mean of d^2/2 over the batch: biased, of low variance"),
    "kl/old_k2_se": Metric("nats", "standard error of kl/old_k2 (samples treated as independent)"),
    "kl/ref_exact": Metric("nats/token", "mean exact KL(new || reference) where distributions are stored, after the last epoch"),
    "kl/ref_k1": Metric("nats/token", "mean of log pi/pi_ref over the sampled tokens, before learning; may be negative"),
    "kl/ref_k1_se": Metric("nats/token", "its standard error, treating whole completions as the independent samples"),
    "kl/ref_k2": Metric("nats/token", "mean of (log pi/pi_ref)^2/2 over the same tokens"),
    "kl/ref_k2_se": Metric("nats/token", "its standard error, likewise"),
    "kl/ref_k3": Metric("nats/token", "mean of pi_ref/pi - 1 + log pi/pi_ref over the same tokens, never negative"),
    "kl/ref_k3_se": Metric("nats/token", "its standard error, likewise"),
    "kl/ref_unbiased": Metric(
        "nats/token", "reweighted mean of ref/new - 1 + log new/ref over all tokens after the last epoch: KL(new || reference)"
    ),
    "kl/ref_unbiased_se": Metric("nats/token", "its standard error (tokens treated as independent)"),
    "kl/eval_ref_sequence": Metric("nats/completion", "mean of log pi(y)/pi_ref(y) over completions of held-out prompts"),
    "kl/eval_ref_sequence_se": Metric("nats/completion", "its standard error over prompts"),
    "kl/coef": Metric("1", "KL penalty coefficient used in this iteration"),
    "policy/entropy": Metric("nats", "mean entropy of the policy over the batch's states, after the last epoch"),
    "ratio/min": Metric("1", "smallest probability ratio new/old of the batch, before any clamp"),
    "ratio/max": Metric("1", "largest probability ratio new/old of the batch, before any clamp"),
    "ratio/abs_log_max": Metric("nats", "largest |log ratio| of the batch after the last epoch"),
    "ratio/abs_log_max_learning": Metric(
        "nats", "largest |log ratio| at which a gradient was taken; 0 (to rounding): no gate can matter"
    ),
    "ratio/clip_fraction": Metric(
        "fraction", "mean share over gradient steps of ratios outside the gate's clip range, or 1 +- .2"
    ),
    "ratio/tail_index": Metric("1", "Hill's estimator of the ratio's tail index over its top 5 %, before any clamp"),
    "gate/sharpness": Metric("1", "sharpness k of the gate in this iteration (NaN for gates without one)"),
    **_by_sign("gate", "the gate value g"),
    "weight/at_one": Metric("1", "w(1), the gate's weight at ratio 1 after scaling (A >= 0 side)"),
    **_by_sign("weight", "the weight w = dg/dd"),
    "weight/relative_mean": Metric("1", "mean of w / w(1) after the last epoch"),
    "ess/ratio": Metric("fraction", "effective sample size (sum r)^2 / sum r^2 / n of the ratios"),
    "ess/weight": Metric("fraction", "effective sample size (sum w)^2 / sum w^2 / n of the weights"),
    "loss/policy": Metric("1", "mean policy loss (gated surrogate and KL penalty) over the iteration's gradient steps"),
    "loss/value": Metric("reward^2", "mean value loss over the iteration's gradient steps, before vf_coef"),
    "grad/norm_mean": Metric("1", "mean gradient norm before clipping over the gradient steps; the actor's if clipped apart"),
    "grad/norm_max": Metric("1", "largest gradient norm before clipping in this iteration, likewise"),
    "grad/clip_fraction": Metric("fraction", "share of gradient steps whose gradient was clipped"),
    "value/explained_variance": Metric("fraction", "1 - Var(return - value) / Var(return) of the critic before learning"),
    "advantage/mean": Metric("1", "mean advantage of the batch before normalization"),
    "advantage/std": Metric("1", "standard deviation of the advantage of the batch before normalization"),
    "gradvar/before": Metric("1", "tr Sigma of one sample's policy gradient at the old parameters, from disjoint groups"),
    "gradvar/after": Metric("1", "the same at the parameters after the last epoch"),
    "gradvar/before_noise_share": Metric(
        "fraction", "tr Sigma / n over ||batch gradient||^2 at the old parameters; 1: no signal"
    ),
    "gradvar/before_noise_share_low": Metric("fraction", "lower end of its 95 % jackknife interval over groups"),
    "gradvar/before_noise_share_high": Metric("fraction", "upper end of its 95 % jackknife interval over groups"),
    "gradvar/after_noise_share": Metric("fraction", "the same at the parameters after the last epoch"),
    "gradvar/after_noise_share_low": Metric("fraction", "lower end of its 95 % jackknife interval over groups"),
    "gradvar/after_noise_share_high": Metric("fraction", "upper end of its 95 % jackknife interval over groups"),
    "gradvar/num_groups": Metric("groups", "number of disjoint groups the variance was estimated from"),
    "trpo/line_search_success": Metric("0/1", "1 if the line search found an improving step inside the trust region"),
    "trpo/step_fraction": Metric("fraction", "accepted fraction of the full natural-gradient step (0 if rejected)"),
    "trpo/quadratic_form": Metric("1", "s'Hs of the search direction s"),
    "trpo/cg_residual": Metric("1", "squared residual of conjugate gradient over the squared gradient norm"),
    "bandit/num_samples": Metric("samples", "number of ratios drawn in this iteration"),
    "bandit/weight_mean": Metric("1", "sample mean of w"),
    "bandit/weight_mean_true": Metric("1", "E w by quadrature"),
    "bandit/weight_var": Metric("1", "sample variance of w"),
    "bandit/weight_var_true": Metric("1", "Var w by quadrature (inf where it diverges)"),
    "bandit/gradient_var": Metric("1", "sample variance of w A s"),
    "bandit/gradient_var_true": Metric("1", "Var(w A s) by quadrature (inf where it diverges)"),
    **_phases(),
    "speed/env_steps_per_s": Metric("steps/s", "environment steps over collect + update + diagnostics time"),
    "epoch/kl_old_exact": Metric("nats", "KL(old || new) after each epoch, whole batch"),
    "epoch/weight_relative_mean": Metric("1", "mean of w / w(1) after each epoch, whole batch"),
    "epoch/ess_ratio": Metric("fraction", "effective sample size of the ratios after each epoch, whole batch"),
}

CLOCK_PREFIXES = ("time/", "speed/")  # clock measurements, the only columns in which two identical runs may differ


def is_list(name: str) -> bool:
    """True for a metric that is a list with one entry per epoch."""
    return name.startswith("epoch/")
