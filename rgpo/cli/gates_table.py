"""python -m rgpo.cli.gates_table [results_dir]: write g and w of every gate in conf/gate for the report, which has no torch."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pyarrow as pa
import torch
from omegaconf import OmegaConf

from rgpo.cli.config import make
from rgpo.core.gate import GateBatch, weight
from rgpo.paths import conf_dir
from rgpo.runtime.parts import write_atomically

NUM_POINTS = 241
FARTHEST = 3.0  # nats
OLD_PROBABILITY = 0.5  # of every sample, for gates that read it
BATCH_SIZE, BATCH_SPREAD = 400, 0.4  # normal log ratios of that standard deviation with A = 1, -1, for gates that read a batch


def example_batch() -> GateBatch:
    """The batch for which gates with bounds of a batch are drawn."""
    levels = (torch.arange(BATCH_SIZE, dtype=torch.float64) + 0.5) / BATCH_SIZE
    d = BATCH_SPREAD * torch.special.ndtri(levels)
    advantage = 1 - 2 * (torch.arange(BATCH_SIZE, dtype=torch.float64) % 2)
    return GateBatch(d, advantage, torch.full_like(d, math.log(OLD_PROBABILITY)))


def gates_table() -> pa.Table:
    """Columns gate, advantage (1 or -1), log_ratio, gate_value, weight."""
    log_ratio = torch.linspace(-FARTHEST, FARTHEST, NUM_POINTS, dtype=torch.float64)
    columns: dict[str, list[object]] = {name: [] for name in ("gate", "advantage", "log_ratio", "gate_value", "weight")}
    for file in sorted((conf_dir() / "gate").glob("*.yaml")):
        node = OmegaConf.to_container(OmegaConf.load(file))
        assert isinstance(node, dict)
        gate = make("gate", {str(key): value for key, value in node.items()})
        for sign in (1.0, -1.0):
            advantage = torch.full_like(log_ratio, sign)
            inputs = log_ratio, advantage, torch.full_like(log_ratio, math.log(OLD_PROBABILITY))
            curve = gate.prepare(example_batch())
            columns["gate"] += [file.stem] * NUM_POINTS
            columns["advantage"] += advantage.tolist()
            columns["log_ratio"] += log_ratio.tolist()
            columns["gate_value"] += curve(*inputs).tolist()
            columns["weight"] += weight(curve, *inputs).tolist()
    floats = {name: pa.array(values, pa.float32()) for name, values in columns.items() if name != "gate"}
    return pa.table({"gate": pa.array(columns["gate"]).dictionary_encode(), **floats})


def main() -> None:
    """Write <results_dir>/gates.parquet."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(gates_table(), folder / "gates.parquet")
    print(folder / "gates.parquet")


if __name__ == "__main__":
    main()
