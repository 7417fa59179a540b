"""Callback that records a TRL run, with our gates or TRL's own loss, as a run folder for rgpo-report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from transformers import TrainerCallback

from rgpo.engines.parts import field_defaults
from rgpo.engines.record import RecordOptions, RunRecord

if TYPE_CHECKING:
    from rgpo.engines.trl_types import AnyTrainer, Arguments, State

NAMES = {  # TRL's name -> our metric
    "loss": "loss/policy",
    "grad_norm": "grad/norm_mean",
    "entropy": "policy/entropy",
    "reward": "reward/train_mean",
    "reward_std": "reward/train_std",
    "frac_reward_zero_std": "language/zero_variance_group_share",
    "completions/mean_length": "language/length_mean",
    "completions/clipped_ratio": "language/truncated_share",
    "step_time": "time/iteration_s",
    "sampling/sampling_logp_difference/mean": "sampler/log_ratio_abs_mean",
    "sampling/sampling_logp_difference/max": "sampler/log_ratio_abs_max",
    "eval_reward": "reward/eval_proxy_mean",
    "eval_kl/ref_sequence": "kl/eval_ref_sequence",
}
UNRECORDED = (  # prefixes of settings that do not affect a run's numbers
    *("output", "overwrite", "logging", "log_", "report_to", "run_name", "project", "trackio", "hub", "push", "save", "seed"),
    *("disable_tqdm", "dataloader_num", "use_cpu", "num_completions_to_print", "do_", "resume", "ignore_data", "local_rank"),
)


class RecordRun(TrainerCallback):
    """Records a run; the options are those of ``RunRecord``.

        trainer.add_callback(RecordRun(trainer, task="gsm8k", algo="rgpo"))

    One row is one log entry of TRL. With ``eval_on_start=True``, the first evaluation is that of the reference policy, and the
    report can plot later rewards against the KL.
    """

    def __init__(self, trainer: AnyTrainer, *, task: str, algo: str, **options: Unpack[RecordOptions]) -> None:
        args, config = trainer.args, type(trainer.args)
        settings = {"model": Path(trainer.model.config._name_or_path).name, **_settings(args, config)}
        steps = max(int(args.logging_steps), 1)
        own: RecordOptions = {"settings": settings, "seed": args.seed, "num_iterations": max(args.max_steps, steps) // steps}
        own["parts"] = getattr(trainer, "parts", None)
        self.record = RunRecord(engine="trl", task=task, algo=algo, **(own | options))
        self._row: dict[str, float] = {}
        self._first_score: float | None = None

    def on_train_begin(self, args: Arguments, state: State, control: object, **_: object) -> None:
        if state.is_world_process_zero:
            steps = max(int(args.logging_steps), 1)
            self.record.num_iterations = max(state.max_steps // steps, 1)
            self.record.start(state.global_step // steps)

    def on_log(
        self, args: Arguments, state: State, control: object, logs: Mapping[str, object] | None = None, **_: object
    ) -> None:
        if not state.is_world_process_zero or logs is None:
            return
        if "loss" in logs:
            self._write(state)
        found = {NAMES.get(key, key): float(x) for key, x in logs.items() if isinstance(x, int | float)}
        score = found.get("reward/eval_proxy_mean")
        if score is not None and state.global_step == 0:
            self._first_score = score
        elif state.global_step:
            self._row |= found
            if score is not None and self._first_score is not None:
                self._row["reward/eval_proxy_change"] = score - self._first_score

    def on_save(self, args: Arguments, state: State, control: object, **_: object) -> None:
        if state.is_world_process_zero:
            self._write(state)
            self.record.flush()

    def on_train_end(self, args: Arguments, state: State, control: object, **_: object) -> None:
        if state.is_world_process_zero:
            self._write(state)
            self.record.finish()

    def _write(self, state: State) -> None:
        """Write the previous log entry's row, including the evaluations that followed it."""
        if "loss/policy" in self._row:
            self.record.log(int(self._row.get("num_tokens", state.global_step)), self._row)
        self._row = {}


def _settings(args: Arguments, config: type) -> dict[str, object]:
    """Settings that affect the numbers and differ from their defaults, as plain values."""
    defaults = {key: x for key, x in field_defaults(config).items() if not key.startswith(UNRECORDED)}
    plain = {key: getattr(args, key) for key in defaults if isinstance(getattr(args, key, None), str | int | float)}
    return {key: x for key, x in plain.items() if x != defaults[key]}
