"""Metrics sent to dashboards during a run: tensorboard, wandb, trackio, mlflow; off by default.

The parquet files are always written first and are all that the report reads. A dashboard's package is imported only when
``exports`` names it. If it fails, one message is printed, that dashboard is dropped, and the run continues.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from rgpo.errors import require

Config = Mapping[str, object]


class Tracker(Protocol):
    """A destination of metrics besides the parquet files."""

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Receive one iteration's finite scalars."""

    def finish(self) -> None:
        """Close; called however the run ends."""


class TensorBoard:
    """Event files in the run's folder, under tensorboard/; on resume, events after the checkpoint are purged."""

    def __init__(self, run_dir: Path, config: Config, iteration: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if (run_dir / "tensorboard").is_symlink():
            raise OSError("tensorboard/ is a link")
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=iteration + 1)

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, iteration)

    def finish(self) -> None:
        self._writer.close()


class WandbLike:
    """wandb, or trackio, which has the same functions; project is the experiment's name, and a run is resumed by its id."""

    def __init__(self, module: str, run_dir: Path, config: Config, iteration: int) -> None:
        self._module = importlib.import_module(module)
        same_run = {"id": run_dir.name} if module == "wandb" else {}
        self._module.init(project=str(config["name"]), name=run_dir.name, config=dict(config), resume="allow", **same_run)

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self._module.log(dict(metrics), step=iteration)

    def finish(self) -> None:
        self._module.finish()


class MLflow:
    """One mlflow run per attempt, experiment and name as in the results folder; the destination is mlflow's own setting."""

    def __init__(self, run_dir: Path, config: Config, iteration: int) -> None:
        self._mlflow = importlib.import_module("mlflow")
        self._mlflow.set_experiment(str(config["name"]))
        self._mlflow.start_run(run_name=run_dir.name)
        choices = config["choices"]
        assert isinstance(choices, Mapping)
        self._mlflow.log_params({f"choices.{key}": value for key, value in choices.items()} | {"seed": config["seed"]})

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(metrics), step=iteration)

    def finish(self) -> None:
        self._mlflow.end_run()


ADAPTERS: dict[str, Callable[[Path, Config, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": partial(WandbLike, "wandb"),
    "trackio": partial(WandbLike, "trackio"),
    "mlflow": MLflow,
}


def require_known(names: Sequence[str]) -> None:
    """Raises: ConfigError for a dashboard that does not exist."""
    for name in names:
        require(name in ADAPTERS, "exports", f"[{','.join(names)}]", f"choose from {', '.join(ADAPTERS)}.")


class Trackers:
    """All dashboards of a run that continues after `iteration` (0 for a new one).

    Raises: ConfigError for a name that is not in ADAPTERS.
    """

    def __init__(self, names: Sequence[str], run_dir: Path, config: Config, iteration: int) -> None:
        require_known(names)
        self._trackers: dict[str, Tracker] = {}
        for name in names:
            self._guarded(name, partial(self._open, name, run_dir, config, iteration))

    def log(self, iteration: int, metrics: Mapping[str, float | list[float]]) -> None:
        """Send the finite scalars of an iteration."""
        if self._trackers:
            scalars = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float) and math.isfinite(v)}
            for name, tracker in list(self._trackers.items()):
                self._guarded(name, partial(tracker.log, iteration, scalars))

    def finish(self) -> None:
        """Close every dashboard."""
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, tracker.finish)

    def _open(self, name: str, run_dir: Path, config: Config, iteration: int) -> None:
        self._trackers[name] = ADAPTERS[name](run_dir, config, iteration)

    def _guarded(self, name: str, action: Callable[[], None]) -> None:
        """Run an action; a dashboard that raises anything is dropped with one message, and never stops the run."""
        try:
            action()
        except Exception as error:
            self._trackers.pop(name, None)
            why = " ".join(str(error).split()) or type(error).__name__
            print(f"exports={name}: {why}; the run continues without it (its parquet files are complete)", flush=True)
