"""python -m rgpo.cli.gates_table [results_dir]: tabulate g and w of all gates in conf/gate for the report, which has no torch."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import torch
from omegaconf import OmegaConf

from rgpo.cli.config import make
from rgpo.paths import conf_dir
from rgpo.runtime.gate_curve import FARTHEST, gate_curve
from rgpo.runtime.parts import write_atomically
from rgpo.runtime.provenance import SIGNS

NUM_POINTS = 241


def gates_table() -> pa.Table:
    """Gate values and weights with columns gate, advantage (1 or -1), log_ratio (nats), gate_value, weight."""
    log_ratio = torch.linspace(-FARTHEST, FARTHEST, NUM_POINTS, dtype=torch.float64)
    columns: dict[str, list[object]] = {name: [] for name in ("gate", "advantage", "log_ratio", "gate_value", "weight")}
    for file in sorted((conf_dir() / "gate").glob("*.yaml")):
        node = OmegaConf.to_container(OmegaConf.load(file))
        assert isinstance(node, dict)
        gate = make("gate", {str(key): value for key, value in node.items()})
        for sign in SIGNS:
            value, slope = gate_curve(gate, log_ratio, sign)
            columns["gate"] += [file.stem] * NUM_POINTS
            columns["advantage"] += [sign] * NUM_POINTS
            columns["log_ratio"] += log_ratio.tolist()
            columns["gate_value"] += value.tolist()
            columns["weight"] += slope.tolist()
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
