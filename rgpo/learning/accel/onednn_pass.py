"""Matrix products of compiled code by oneDNN's kernels, which torch carries and inductor does not choose by itself.

torch's own choice for float32 is MKL, which spends much of a small product on its call and uses no AVX-512 on AMD
processors: 64 x 64 x 64 takes it three times as long.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files


class Products(CustomGraphPass):
    """A pass of inductor's that gives products of float32 matrices on one thread of a CPU to ``product_kernel``.

    Several threads stay with MKL, which divides a product among them.
    """

    def __call__(self, graph: fx.Graph) -> None:
        if torch.get_num_threads() > 1:
            return
        import rgpo.learning.accel.onednn_kernel  # noqa: F401  (seconds of imports, which code found on disk does without)

        for node in graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default):
            c = node.meta["val"]
            if c.dtype == torch.float32 and c.device.type == "cpu" and c.numel() > 0:
                node.target = torch.ops.rgpo.product.default

    def uuid(self) -> Any:
        files = (__file__, str(Path(__file__).with_name("product_kernel.py")))
        return get_hash_for_files(files), torch.get_num_threads()
