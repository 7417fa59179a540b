"""Use oneDNN's kernels for matrix products in compiled code; torch includes them, but inductor does not choose them.

For float32 torch calls MKL, which has a high overhead per call for small products and does not use AVX-512 on AMD processors:
a 64 x 64 x 64 product takes three times as long.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files


class Products(CustomGraphPass):
    """An inductor pass that replaces products of float32 matrices on one CPU thread with ``onednn_kernel.product``.

    With several threads, MKL is kept, because it divides each product among the threads.
    """

    def __call__(self, graph: fx.Graph) -> None:
        if torch.get_num_threads() > 1:
            return
        import rgpo.learning.accel.onednn_kernel  # noqa: F401  (takes seconds; graphs found on disk never get here)

        for node in graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default):
            c = node.meta["val"]
            if c.dtype == torch.float32 and c.device.type == "cpu" and c.numel() > 0:
                node.target = torch.ops.rgpo.product.default

    def uuid(self) -> Any:
        files = (__file__, str(Path(__file__).with_name("onednn_kernel.py")))
        return get_hash_for_files(files), torch.get_num_threads()
