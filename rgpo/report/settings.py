"""The report's settings; defaults and meanings are in conf/report.yaml."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from rgpo.errors import close_matches, require, shell_word

FIGURES = (  # modules in rgpo.report.figures, in the report's order
    "learning_curves",
    "frontier",
    "settings_frontier",
    "proxy_against_gold",
    "aggregates",
    "profiles",
    "improvement",
    "kl",
    "spikes",
    "epoch_drift",
    "gradient_variance",
    "weight",
    "ratio_tails",
    "own_metrics",
    "arm_gates",
    "timing",
    "speed",
    "gates",
)
WITHOUT_RUNS = ("speed", "gates")  # figures that cover all experiments and are not made from runs
EXPLORED = (  # figures of metrics over a run, drawn by the page's script from the runs' data
    "learning_curves",
    "kl",
    "gradient_variance",
    "weight",
    "own_metrics",
    "timing",
)
NEED_BASELINE = ("aggregates", "profiles", "improvement")  # figures of scores normalized by a baseline
LIVE = ("watch", "watch_every_s", "serve", "host", "port")  # settings that do not affect the report's contents
FORMATS = ("svg", "png", "pdf")
DEFAULT_BASELINE = "ppo"


@dataclass(frozen=True)
class Settings:
    """The validated settings.

    Raises: ConfigError if a value cannot be used.
    """

    results_dir: str
    out: str
    experiment: str | None
    baseline: str | None
    figures: list[str] | None
    format: str | None
    width: float
    font_size: float
    dpi: int
    smoothing: int
    final_fraction: float
    spike_threshold: float
    spike_sweep: list[float]
    confidence: float
    num_resamples: int
    seed: int
    max_completions: int
    claims: str | None
    ledger: str | None
    watch: bool
    watch_every_s: float
    serve: bool
    host: str
    port: int

    def __post_init__(self) -> None:
        for name in self.figures or ():
            own = "and there is no module of that name in the current directory"
            remedy = f"{name} is not one of {', '.join(FIGURES)}, {own}.{close_matches(str(name), FIGURES)}"
            require(name in FIGURES or is_own_figure(name), "figures", _text(self.figures), remedy)
        require(self.format in (None, *FORMATS), "format", self.format, f"give one of {', '.join(FORMATS)}, or null for none")
        require(2 <= self.width <= 40, "width", self.width, "give 2 to 40 inches; 3.5 is a column, 7 is a page")
        require(3 <= self.font_size <= 40, "font_size", self.font_size, "give 3 to 40 points")
        require(20 <= self.dpi <= 1200, "dpi", self.dpi, "give 20 to 1200 dots per inch")
        require(1 <= self.smoothing <= 1000, "smoothing", self.smoothing, "give 1 (none) to 1000 updates")
        require(0 < self.final_fraction <= 1, "final_fraction", self.final_fraction, "give a share above 0, up to 1")
        for key, levels in (("spike_threshold", [self.spike_threshold]), ("spike_sweep", self.spike_sweep)):
            require(all(level > 0 for level in levels), key, _text(getattr(self, key)), "give nats above 0")
        require(0 < self.confidence < 1, "confidence", self.confidence, "give a share between 0 and 1, such as 0.95")
        require(100 <= self.num_resamples <= 100_000, "num_resamples", self.num_resamples, "give 100 to 100000")
        require(self.seed >= 0, "seed", self.seed, "give 0 or more")
        require(0 <= self.max_completions <= 10_000, "max_completions", self.max_completions, "give 0 to 10000 pairs")
        require(0 <= self.port <= 65535, "port", self.port, "give 1 to 65535, or 0 for any that is free")
        require(self.watch_every_s >= 0.1, "watch_every_s", self.watch_every_s, "give 0.1 seconds or more")

    @property
    def wanted_figures(self) -> list[str]:
        """Names of the figures in the report's order, without duplicates, users' own last."""
        own = [name for name in dict.fromkeys(self.figures or ()) if name not in FIGURES]
        return [name for name in FIGURES if self.figures is None or name in self.figures] + own

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Thresholds for spike rates in nats, ascending, including spike_threshold."""
        return tuple(sorted({self.spike_threshold, *self.spike_sweep}))


def is_own_figure(name: str) -> bool:
    """True if the current directory has a module with that name."""
    return name.isidentifier() and Path(f"{name}.py").is_file()


def command(settings: Settings, defaults: Settings, **change: object) -> str:
    """The shell command for the report with `settings` and `change`; lists only what differs from the defaults."""
    values = {field.name: change.get(field.name, getattr(settings, field.name)) for field in fields(settings)}
    words = [f"{key}={_text(value)}" for key, value in values.items() if value != getattr(defaults, key) and key not in LIVE]
    return " ".join(map(shell_word, ["rgpo-report", *words]))


def _text(value: object) -> str:
    """A value as typed on the command line."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(str, value))}]"
    return "null" if value is None else str(value)
