"""The compiled engine on versions of torch that were not tried or that lack a private part, and its clause in the banner."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._inductor.exc import CppCompileError, InductorError

from rgpo.errors import ConfigError
from rgpo.learning.accel import compiled_adam
from rgpo.learning.accel.compiled_adam import TRIED, CompiledEpochs, failure, resolve
from rgpo.learning.adam import AdamState, bias_corrections
from rgpo.learning.flat_adam import loop, run_epochs
from rgpo.learning.loss import LossParts

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
MINOR = ".".join(torch.__version__.split(".")[:2])
MANY = 10**9  # gradient steps
PAYS = f"compiled: {MANY:,} gradient steps, which pays from 8,000 on"
UNTRIED = f"torch {MINOR} has not been tried with the compiled engine (tried: 0.1, 0.2)"
SCAN, ONEDNN_PASS, ONEDNN_KERNEL = (
    "torch._higher_order_ops.scan",
    "rgpo.learning.accel.onednn_pass",
    "rgpo.learning.accel.onednn_kernel",
)


@pytest.fixture(autouse=True)
def _fresh_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Private parts are imported anew in each test, on a version of torch that counts as tried."""
    monkeypatch.setattr(compiled_adam, "TRIED", (MINOR,))
    torch.compiler.reset()
    compiled_adam.engine.cache_clear()
    yield
    compiled_adam.engine.cache_clear()


def lacks(monkeypatch: pytest.MonkeyPatch, module: str) -> str:
    """Make the import of a module fail; returns the clause's reason."""
    monkeypatch.setitem(sys.modules, module, None)
    return f"import of {module} halted; None in sys.modules"


def losses(flat: Tensor, data: tuple[Tensor, Tensor], kl_coef: Tensor) -> tuple[Tensor, LossParts]:
    """Two layers fitted to a target, by products that the engine gives to oneDNN."""
    x, target = data
    hidden = (x @ flat[:40].view(5, 8)).tanh() @ flat[40:104].view(8, 8)
    loss = (hidden.sum(1) - target).square().mean() + kl_coef * flat.square().sum()
    return loss, LossParts(loss.detach(), loss.detach() * 2, hidden.abs().amax().detach(), *(loss.detach() * 0,) * 2)


def parameters_and_parts(compiled: bool, num_rollouts: int = 2) -> Tensor:
    """All that three epochs of four minibatches leave, over two rollouts."""
    function = partial(run_epochs, loss_function=losses, measure=lambda flat, _: (flat * 2,), max_grad_norm=0.5, adam_eps=1e-5)
    run = CompiledEpochs(function, loop) if compiled else partial(function, fold=loop)
    generator, found = torch.Generator().manual_seed(0), []
    state = AdamState.start(torch.randn(104, generator=generator) * 0.3)
    for i in range(num_rollouts):
        data = torch.randn(32, 5, generator=generator), torch.randn(32, generator=generator)
        order = torch.stack([torch.randperm(32, generator=generator) for _ in range(3)]).view(3, 4, 8)
        corrections = bias_corrections(1e-2, 12 * i, 12).float().view(3, 4, 2)
        state, statistics, measures = run(state, data, order, corrections, torch.tensor(0.1))
        found += [*state, statistics, *measures]
    return torch.cat([x.flatten() for x in found])


def test_the_pinned_torch_was_tried_and_every_trial_is_documented() -> None:
    root = Path(__file__).parents[1]
    assert re.search(r"^torch==(\d+\.\d+)\.", (root / "constraints.txt").read_text(), re.MULTILINE)[1] in TRIED
    assert all(f"torch {version}" in (root / "docs" / "torch_versions.md").read_text() for version in TRIED)


def test_a_tried_version_with_all_parts_compiles() -> None:
    assert resolve("auto", MANY) == (True, PAYS) and resolve(True, 1) == (True, "compiled")
    assert "post_grad_custom_post_pass" in compiled_adam.engine().options
    torch.testing.assert_close(parameters_and_parts(True), parameters_and_parts(False), rtol=1e-5, atol=1e-5)


def test_a_version_that_was_not_tried_compiles_on_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_adam, "TRIED", ("0.1", "0.2"))
    assert resolve("auto", MANY) == (False, f"not compiled: {UNTRIED}")
    assert resolve(True, 1) == (True, f"compiled; {UNTRIED}")
    torch.testing.assert_close(parameters_and_parts(True), parameters_and_parts(False), rtol=1e-5, atol=1e-5)


def test_without_scan_each_step_is_compiled_on_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    why = lacks(monkeypatch, SCAN)
    assert resolve("auto", MANY) == (False, f"not compiled: torch has no scan ({why})")
    assert resolve(True, 1) == (True, f"compiled; torch has no scan ({why})")
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found = parameters_and_parts(True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == 1  # of all steps of both rollouts
    torch.testing.assert_close(found, parameters_and_parts(False), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("module", [ONEDNN_PASS, ONEDNN_KERNEL])
def test_without_onednn_the_rest_compiles(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """The kernel is imported in advance on versions that were not tried only: it takes seconds."""
    why = lacks(monkeypatch, module)
    clause = f"without oneDNN's matrix products ({why})"
    if module == ONEDNN_KERNEL:
        monkeypatch.setattr(compiled_adam, "TRIED", ("0.1", "0.2"))
        assert resolve(True, 1) == (True, f"compiled; {UNTRIED}; {clause}")
    else:
        assert resolve("auto", MANY) == (True, f"{PAYS}; {clause}") and resolve(True, 1) == (True, f"compiled; {clause}")
    assert "post_grad_custom_post_pass" not in compiled_adam.engine().options
    torch.testing.assert_close(parameters_and_parts(True), parameters_and_parts(False), rtol=1e-5, atol=1e-5)


def test_options_that_inductor_does_not_know_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [name for name in torch._inductor.list_options() if name not in ("pattern_matcher", "cpp.vec_isa_ok")]
    monkeypatch.setattr(torch._inductor, "list_options", lambda: known)
    assert resolve("auto", MANY) == (True, f"{PAYS}; inductor has no option cpp.vec_isa_ok, pattern_matcher")
    assert set(compiled_adam.engine().options) <= set(known)


def test_all_that_is_missing_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_adam, "TRIED", ("0.1", "0.2"))
    scan, onednn = lacks(monkeypatch, SCAN), lacks(monkeypatch, ONEDNN_PASS)
    parts = f"torch has no scan ({scan}); without oneDNN's matrix products ({onednn})"
    assert resolve(True, 1) == (True, f"compiled; {UNTRIED}; {parts}")


def test_what_compiling_needs_on_any_version_is_still_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The case that must fail: compile=true with a cache folder that cannot be made."""
    monkeypatch.setattr(compiled_adam, "TRIED", ("0.1", "0.2"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("RGPO_CACHE", str(tmp_path / "file"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # torch sets it itself
    with pytest.raises(ConfigError, match=r"RGPO_CACHE=.*set RGPO_CACHE"):
        resolve(True, 1)


def test_the_clause_about_a_failed_compilation() -> None:
    compile_error = CppCompileError(["g++"], "no Python.h")
    assert failure(compile_error) == "the C++ compiler failed (C++ compile error); install g++ and Python's headers"
    assert failure(InductorError(compile_error, None)).startswith("the C++ compiler failed (CppCompileError: C++ compile error)")
    lowering = InductorError(KeyError("template"), None)
    assert failure(lowering) == "torch cannot compile this update (InductorError: KeyError: 'template')"
    assert failure(ConfigError("/cache: can be written by other users.")) == "/cache: can be written by other users"
