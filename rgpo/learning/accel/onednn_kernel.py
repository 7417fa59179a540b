"""Code generation for matrix products in inductor: a call to oneDNN's kernel, which torch specializes to the shape.

Imported by ``onednn_pass`` when a graph is compiled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._inductor import ir
from torch._inductor.lowering import register_lowering  # first, because inductor.codegen and lowering import each other

from torch._inductor.codegen.cpp_template import CppTemplate  # isort: skip

SOURCE = """
namespace at::native::cpublas {{
void brgemm(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add_c,
            const float* a, const float* b, float* c, bool is_vnni);
}}
extern "C" {kernel} {{
    at::native::cpublas::brgemm({m}, {n}, {k}, {lda}, {ldb}, {n}, false, &{a}, &{b}, C, false);
}}
"""


@torch.library.custom_op("rgpo::product", mutates_args=())
def product(a: Tensor, b: Tensor) -> Tensor:
    """C (M, N) = A (M, K) B (K, N)."""
    return a @ b


@product.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


class _Kernel(CppTemplate):
    """C = A B for A and B with contiguous rows; add_c and is_vnni are false because C is new and float32."""

    def render(self, **options: Any) -> str:
        kernel, (a, b), c = options["kernel"], self.input_nodes, options.get("template_buffer_node") or self.output_node
        signature = kernel.def_kernel({"A": a, "B": b}, {"C": c})
        sizes = {"m": kernel.size(a, 0), "k": kernel.size(a, 1), "n": kernel.size(b, 1)}
        strides = {"lda": kernel.stride(a, 0), "ldb": kernel.stride(b, 0)}
        first = {"a": kernel.index(a, [0, 0]), "b": kernel.index(b, [0, 0])}
        return self.header().getvalue() + SOURCE.format(kernel=signature, **sizes, **strides, **first)


@register_lowering(torch.ops.rgpo.product.default, type_promotion_kind=None)
def _lower(a: Any, b: Any) -> Any:
    a, b = (ir.ExternKernel.require_contiguous(ir.ExternKernel.realize_input(x)) for x in (a, b))
    layout = ir.FixedLayout(a.get_device(), torch.float32, [a.get_size()[0], b.get_size()[1]])
    template: Any = _Kernel("product", [a, b], layout, num_threads=1)
    output = template.generate().output_node()
    output.data.data.allow_epilogue_fusion = False
    return output
