"""Metrics to other people's dashboards while a run goes on: tensorboard, wandb, trackio, mlflow; off by default.

The parquet files are always written first and are all that the report reads. An exporter is imported when a run asks for it;
one that fails says so once and is dropped, and the run goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rgpo.errors import require


class Exporter(Protocol):
    """Where metrics go besides parquet."""

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """One iteration's finite scalars."""

    def finish(self) -> None:
        """The run has ended, however it did."""


class TensorBoard:
    """Event files in the run's folder, below tensorboard/; what an attempt that broke off wrote past its checkpoint is purged."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], iteration: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run_dir / "tensorboard"), purge_step=iteration + 1)

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, iteration)

    def finish(self) -> None:
        self._writer.close()


class Tracker:
    """wandb, or trackio, which has the same functions; project is the experiment's name, a run is resumed by its id."""

    def __init__(self, module: str, run_dir: Path, config: Mapping[str, Any], iteration: int) -> None:
        import importlib

        self._module = importlib.import_module(module)
        same_run = {"id": run_dir.name} if module == "wandb" else {}
        self._module.init(project=str(config["name"]), name=run_dir.name, config=dict(config), resume="allow", **same_run)

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self._module.log(dict(metrics), step=iteration)

    def finish(self) -> None:
        self._module.finish()


class MLflow:
    """One mlflow run an attempt, experiment and name as in the results folder; where it goes is mlflow's own setting."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], iteration: int) -> None:
        import mlflow

        self._mlflow: Any = mlflow
        mlflow.set_experiment(str(config["name"]))
        mlflow.start_run(run_name=run_dir.name)
        mlflow.log_params({f"choices.{key}": value for key, value in config["choices"].items()} | {"seed": config["seed"]})

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(metrics), step=iteration)

    def finish(self) -> None:
        self._mlflow.end_run()


ADAPTERS: dict[str, Callable[[Path, Mapping[str, Any], int], Exporter]] = {
    "tensorboard": TensorBoard,
    "wandb": partial(Tracker, "wandb"),
    "trackio": partial(Tracker, "trackio"),
    "mlflow": MLflow,
}


class Exports:
    """All exporters of a run that goes on after `iteration`, 0 for a new one. ConfigError for a name that is none."""

    def __init__(self, names: Sequence[str], run_dir: Path, config: Mapping[str, Any], iteration: int) -> None:
        for name in names:
            require(name in ADAPTERS, "exports", f"[{','.join(names)}]", f"choose from {', '.join(ADAPTERS)}")
        self._exporters: dict[str, Exporter] = {}
        for name in names:
            self._guarded(name, partial(self._open, name, run_dir, config, iteration))

    def log(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        """Hand over the finite scalars of an iteration."""
        if self._exporters:
            scalars = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float) and math.isfinite(v)}
            for name, exporter in list(self._exporters.items()):
                self._guarded(name, partial(exporter.log, iteration, scalars))

    def finish(self) -> None:
        """Close every exporter."""
        for name, exporter in list(self._exporters.items()):
            self._guarded(name, exporter.finish)

    def _open(self, name: str, run_dir: Path, config: Mapping[str, Any], iteration: int) -> None:
        self._exporters[name] = ADAPTERS[name](run_dir, config, iteration)

    def _guarded(self, name: str, action: Callable[[], None]) -> None:
        """A dashboard must never stop a run: whatever it raises is one sentence, and it is dropped."""
        try:
            action()
        except Exception as error:
            self._exporters.pop(name, None)
            why = " ".join(str(error).split()) or type(error).__name__
            print(f"exports={name}: {why}; the run goes on without it (its parquet files are complete)", flush=True)
