"""Export of metrics to dashboards during a run: tensorboard, wandb, trackio, mlflow; off by default.

The x axis is environment steps, or completion tokens for language tasks. Besides the metrics, dashboards receive the
configuration, a few evaluated completions, and the film that rgpo-eval makes. The parquet files are always written first, and
the report reads nothing else. A dashboard's package is imported only if ``exports`` names it. If a dashboard fails, one message
is printed, the dashboard is dropped, and the run continues.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, cast

from rgpo.errors import require
from rgpo.runtime.former import flat_config

Config = Mapping[str, object]
Row = Mapping[str, object]
MAX_TEXTS = 10  # most completions sent per evaluation
TEXTS = ("prompt_id", "prompt", "completion", "proxy", "kl_ref")  # columns of samples.parquet
MAX_PARAMETER = 500  # characters, which every mlflow server accepts


class Tracker(Protocol):
    """A destination for results in addition to the parquet files."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one iteration's finite scalars."""

    def log_texts(self, step: int, rows: Sequence[Row]) -> None:
        """Log completions, with the columns in TEXTS."""

    def log_film(self, step: int, path: Path) -> None:
        """Log an episode as an mp4 or gif file."""

    def finish(self) -> None:
        """Close the dashboard; called no matter how the run ends."""


class _EventFile(Protocol):
    def add_summary(self, summary: object, global_step: int | None = None) -> None: ...


class TensorBoard:
    """Event files in the run's tensorboard/ folder; on resume, events after the checkpoint are purged."""

    def __init__(self, run_dir: Path, config: Config, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if (run_dir / "tensorboard").is_symlink():
            raise OSError("tensorboard/ is a link")
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)
        self._events = cast(_EventFile, self._writer.file_writer)
        for part in importlib.import_module("torch.utils.tensorboard.summary").hparams(parameters_of(config), {}):
            self._events.add_summary(part)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def log_texts(self, step: int, rows: Sequence[Row]) -> None:
        for row in rows:
            notes = ", ".join(f"{key} {row[key]}" for key in ("proxy", "kl_ref") if key in row)
            texts = (f"**{key}**\n\n{_verbatim(row.get(key))}" for key in ("prompt", "completion"))
            self._writer.add_text(f"completion/{row['prompt_id']}", "\n\n".join([*texts, notes]), step)

    def log_film(self, step: int, path: Path) -> None:
        if path.suffix != ".gif":
            return  # TensorBoard does not show other formats
        kind = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
        image = kind.Image(colorspace=3, encoded_image_string=path.read_bytes())
        self._events.add_summary(kind(value=[kind.Value(tag="episode", image=image)]), step)

    def finish(self) -> None:
        self._writer.close()


class WandbLike:
    """wandb or trackio, which share an interface; the project is the experiment's name, and runs are resumed by id or name."""

    def __init__(self, module: str, run_dir: Path, config: Config, step: int) -> None:
        self._module = importlib.import_module(module)
        same_run = {"id": run_dir.name} if module == "wandb" else {}
        self._module.init(project=str(config["name"]), name=run_dir.name, config=dict(config), resume="allow", **same_run)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._module.log(dict(metrics), step=step)

    def log_texts(self, step: int, rows: Sequence[Row]) -> None:
        columns = _columns(rows)
        table = self._module.Table(columns=columns, data=[[row.get(key) for key in columns] for row in rows])
        self._module.log({"completions": table}, step=step)

    def log_film(self, step: int, path: Path) -> None:
        self._module.log({"episode": self._module.Video(str(path), format=path.suffix.removeprefix("."))}, step=step)

    def finish(self) -> None:
        self._module.finish()


class MLflow:
    """One mlflow run per attempt, named as in the results folder; the destination is set in mlflow itself."""

    def __init__(self, run_dir: Path, config: Config, step: int) -> None:
        self._mlflow = importlib.import_module("mlflow")
        self._mlflow.set_experiment(str(config["name"]))
        self._mlflow.start_run(run_name=run_dir.name)
        self._mlflow.log_params({key: str(value)[:MAX_PARAMETER] for key, value in parameters_of(config).items()})

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(metrics), step=step)

    def log_texts(self, step: int, rows: Sequence[Row]) -> None:
        table = {"step": [step] * len(rows)} | {key: [row.get(key) for row in rows] for key in _columns(rows)}
        self._mlflow.log_table(table, artifact_file="completions.json")

    def log_film(self, step: int, path: Path) -> None:
        self._mlflow.log_artifact(str(path))

    def finish(self) -> None:
        self._mlflow.end_run()


ADAPTERS: dict[str, Callable[[Path, Config, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": partial(WandbLike, "wandb"),
    "trackio": partial(WandbLike, "trackio"),
    "mlflow": MLflow,
}


def parameters_of(config: Config) -> dict[str, str | int | float | bool]:
    """Dotted key -> value of a configuration, with lists and nulls as text."""
    return {key: value if isinstance(value, int | float) else str(value) for key, value in flat_config(config).items()}


def _columns(rows: Sequence[Row]) -> list[str]:
    return [key for key in TEXTS if any(key in row for row in rows)]


def _verbatim(text: object) -> str:
    """Indent lines so that markdown shows them verbatim."""
    return "\n".join(f"    {line}" for line in str(text).splitlines())


def require_known(names: Sequence[str]) -> None:
    """Raises: ConfigError for an unknown dashboard."""
    for name in names:
        require(name in ADAPTERS, "exports", f"[{','.join(names)}]", f"choose from {', '.join(ADAPTERS)}.")


class Trackers:
    """All dashboards of a run that continues after `step` environment steps or tokens (0 for a new run).

    Raises: ConfigError for a name that is not in ADAPTERS.
    """

    def __init__(self, names: Sequence[str], run_dir: Path, config: Config, step: int) -> None:
        require_known(names)
        self._trackers: dict[str, Tracker] = {}
        for name in names:
            self._guarded(name, partial(self._open, name, run_dir, config, step))

    def log(self, step: int, metrics: Mapping[str, float | list[float]]) -> None:
        """Send the finite scalars of an iteration."""
        if self._trackers:
            scalars = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float) and math.isfinite(v)}
            for name, tracker in list(self._trackers.items()):
                self._guarded(name, partial(tracker.log, step, scalars))

    def log_texts(self, step: int, rows: Sequence[Row]) -> None:
        """Send the first completions of an evaluation."""
        for name, tracker in list(self._trackers.items()) if rows else ():
            self._guarded(name, partial(tracker.log_texts, step, rows[:MAX_TEXTS]))

    def log_film(self, step: int, path: Path) -> None:
        """Send an episode."""
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, partial(tracker.log_film, step, path))

    def finish(self) -> None:
        """Close every dashboard."""
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, tracker.finish)

    def _open(self, name: str, run_dir: Path, config: Config, step: int) -> None:
        self._trackers[name] = ADAPTERS[name](run_dir, config, step)

    def _guarded(self, name: str, action: Callable[[], None]) -> None:
        """Run an action; if it raises, drop the dashboard and print one message, so that the run never stops."""
        try:
            action()
        except Exception as error:
            self._trackers.pop(name, None)
            why = " ".join(str(error).split()) or type(error).__name__
            print(f"exports={name}: {why}; the run continues without it (its parquet files are complete)", flush=True)
