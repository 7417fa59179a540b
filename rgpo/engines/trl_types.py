"""Types for the parts of TRL's trainers and transformers' callbacks that we extend or read; for type checking only.

TRL has no stubs; the private methods are listed in docs/private_api.md.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from rgpo.engines.statistics import Accelerator

Inputs = dict[str, Tensor]  # a loss's inputs; only tensor entries are read
Metrics = dict[str, dict[str, list[float]]]  # mode -> name -> values since the last log entry


class Arguments(Protocol):
    """TrainingArguments."""

    logging_steps: float
    max_steps: int
    seed: int
    should_save: bool


class State(Protocol):
    """TrainerState."""

    global_step: int
    max_steps: int
    is_world_process_zero: bool


class ModelConfig(Protocol):
    """PretrainedConfig."""

    _name_or_path: str


class Model(Protocol):
    """PreTrainedModel."""

    @property
    def config(self) -> ModelConfig: ...


class AnyTrainer(Protocol):
    """Any of TRL's trainers."""

    @property
    def model(self) -> Model: ...

    @property
    def args(self) -> Arguments: ...


class StepAccelerator(Accelerator, Protocol):
    """accelerate.Accelerator as a trainer uses it."""

    sync_gradients: bool


class Trainer:
    """GRPOTrainer and RLOOTrainer."""

    model: nn.Module
    args: Arguments
    state: State
    accelerator: StepAccelerator
    _metrics: Metrics

    def _compute_loss(self, model: object, inputs: Inputs) -> Tensor:
        raise NotImplementedError

    def _get_per_token_logps_and_entropies(self, *args: object, **kwargs: object) -> tuple[Tensor, Tensor | None, Tensor | None]:
        raise NotImplementedError

    def _generate_and_score_completions(self, inputs: object) -> object:
        raise NotImplementedError

    def _get_output_dir(self, trial: object) -> str:
        raise NotImplementedError

    def _save_checkpoint(self, model: object, trial: object) -> None:
        raise NotImplementedError

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        raise NotImplementedError
