"""Matrix products of compiled code against torch's own, for every layout of the matrices in memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from rgpo.learning.accel.compiled_adam import engine

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch._inductor.config.patch(force_disable_caches=True):
        yield
    torch.set_num_threads(threads)


def compiled(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[tuple[Tensor, ...], int]:
    """Its results, and the number of its products that oneDNN's kernels computed."""
    found = torch.compile(function, fullgraph=True, dynamic=False, options=engine().options)(*tensors)
    return found, counters["inductor"]["cpp_templated_kernel_counter"]


def products(flat: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Factors that are unaligned, transposed on either side, of one column, with gaps between rows, and equal."""
    w, v = flat[3 : 3 + 17 * 8].view(17, 8), flat[200 : 200 + 17].view(17, 1)
    h = (x @ w).tanh()
    return h, x @ v, x.T @ h, h @ w.T, x[:, :5] @ w[:5], x[::2] @ w, x.T @ x, (w.T @ x.T).T


def test_products_are_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    flat, x = torch.randn(300, generator=generator), torch.randn(32, 17, generator=generator)
    found, count = compiled(products, flat, x)
    assert count == 8
    for a, b in zip(found, products(flat.double(), x.double()), strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "threads"), [(torch.float64, 1), (torch.bfloat16, 1), (torch.float32, 2)])
def test_other_numbers_and_several_threads_stay_with_mkl(dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    a = torch.arange(12.0).view(3, 4).to(dtype)
    (found,), count = compiled(lambda a: (a @ a.T,), a)
    assert count == 0
    assert found.tolist() == [[14, 38, 62], [38, 126, 214], [62, 214, 366]]


def test_infinities_and_nothing_at_all_go_through() -> None:
    a, b = torch.tensor([[1.0, torch.inf], [2.0, 0.0]]), torch.tensor([[1.0, 2.0], [0.0, torch.nan]])
    (found,), _ = compiled(lambda a, b: (a @ b,), a, b)
    torch.testing.assert_close(found, a @ b, equal_nan=True)
    (empty,), _ = compiled(lambda a, b: (a @ b,), a[:0], b)
    assert empty.shape == (0, 2)
