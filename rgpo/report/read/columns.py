"""Names of the metrics that the report reads from every run, and the numbers that it keeps for each.

Units and meanings are in rgpo.runtime.schema.GLOSSARY. Figures name any additional columns that they draw.
"""

from __future__ import annotations

TRAIN, EVAL = "return/train_mean", "return/eval_mean"
RESTARTED, CUT = "return/num_restarted", "return/eval_num_cut"
REWARD, PROXY, GOLD = "reward/train_mean", "reward/eval_proxy_change", "reward/eval_gold_change"
KL, KL_REF = "kl/old_exact", "kl/eval_ref_sequence"
RATIO_MAX = "ratio/max"
LENGTH, TRUNCATED, TOKENS = "language/length_mean", "language/truncated_share", "language/num_tokens"
SPEED, ITERATION = "speed/env_steps_per_s", "time/iteration_s"
PHASES = ("collect", "update", "diagnostics", "gradvar", "evaluate")
TIMES = {phase: f"time/{phase}_s" for phase in PHASES}

SCORES = (TRAIN, REWARD, PROXY, GOLD)
PATHS = (KL, TRAIN, KL_REF, PROXY, GOLD)  # compared at equal KL
FINAL = (*SCORES, KL_REF, LENGTH, TRUNCATED)
NUMBERS: tuple[tuple[str, str], ...] = (  # (column, statistic over a run's measured rows)
    (TRAIN, "first"),
    (EVAL, "last"),
    (EVAL, "final"),
    (CUT, "last"),
    (RESTARTED, "last"),
    *((column, "final") for column in FINAL),
    (KL, "mean"),
    (KL, "median"),
    (KL, "count"),
    *((column, "median") for column in (*TIMES.values(), ITERATION)),
    (ITERATION, "sum"),
    (SPEED, "median"),
    (TOKENS, "mean"),
)
COLUMNS = {column for column, _ in NUMBERS} | {RATIO_MAX}
