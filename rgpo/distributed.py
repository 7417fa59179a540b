"""The processes of one run, as torchrun and accelerate start them; all of this does nothing where there is one.

Every process draws the same random numbers and holds the whole rollout's tokens; what is divided is forward passes. What a
process finds out of its own tokens is added up over all, so that all go on with the same numbers. The first process alone
writes files and speaks.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from rgpo.errors import ConfigError, require

if TYPE_CHECKING:
    from torch import Tensor

TIMEOUT = timedelta(minutes=30)  # that processes wait for one another before they give up
PATIENCE_S = 3.0  # that a process which fails waits for what the others say of it
NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
T = TypeVar("T")
P = ParamSpec("P")


def world_size() -> int:
    """How many processes share the run."""
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdecimal() else 1


def rank() -> int:
    """Which of them this is; 0 is the first."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def start() -> None:
    """Join the other processes, over gloo for CPUs, NCCL for GPUs, one a process; all but the first fall silent. ConfigError."""
    size = os.environ.get("WORLD_SIZE", "1")
    require(size.isdecimal() and int(size) > 0, "WORLD_SIZE", size, "must be a positive whole number; torchrun sets it.")
    if world_size() == 1:
        return
    missing = [name for name in NEEDED if name not in os.environ]
    require(not missing, "WORLD_SIZE", size, f"is set but {', '.join(missing)} is not; start with torchrun, or unset WORLD_SIZE.")
    import torch
    import torch.distributed as dist

    gpus, local = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if gpus:
        require(local < gpus, "LOCAL_RANK", local, f"there are only {gpus} GPUs here; start one process a GPU.")
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"WORLD_SIZE={size}: the processes cannot reach one another ({error}); start with torchrun.") from error
    if rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123


def stop() -> None:
    """Leave the other processes."""
    if world_size() > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def refuse_many(kind: str) -> None:
    """ConfigError where a task runs in one process alone."""
    remedy = f"{kind} tasks run in one process; start without torchrun (a sweep's runs go side by side with -m)."
    require(world_size() == 1, "WORLD_SIZE", world_size(), remedy)


def on_first(function: Callable[P, None]) -> Callable[P, None]:
    """The function, called in the first process only."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> None:
        if rank() == 0:
            function(*args, **kwargs)

    return called


def share(items: Sequence[Any]) -> slice:
    """This process's part of items, consecutive and about equally many; equal neighbours stay together where they can."""
    starts = [i for i in range(len(items)) if i == 0 or items[i] != items[i - 1]]
    if len(starts) < world_size():
        starts = list(range(len(items)))
    bounds = [*starts, len(items)]
    return slice(*(bounds[k * len(starts) // world_size()] for k in (rank(), rank() + 1)))


def total(x: Tensor) -> Tensor:
    """x added up over the processes."""
    return _reduced(x, "SUM")


def largest(x: Tensor) -> Tensor:
    """The maximum of x over the processes."""
    return _reduced(x, "MAX")


def _reduced(x: Tensor, operation: str) -> Tensor:
    if world_size() == 1:
        return x
    import torch.distributed as dist

    x = x.contiguous()
    dist.all_reduce(x, getattr(dist.ReduceOp, operation))
    return x


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace each contiguous tensor by its sum over the processes."""
    if world_size() == 1:
        return
    import torch.distributed as dist

    for work in [dist.all_reduce(x, async_op=True) for x in tensors]:
        work.wait()


def gather(x: T) -> list[T]:
    """What each process calls x, in the order of ranks."""
    if world_size() == 1:
        return [x]
    import torch.distributed as dist

    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, x)
    return found


def failed(sentence: str, error: BaseException) -> tuple[str, bool]:
    """Why the run ends, and whether it is this process that should say so: the one where it went wrong first, by rank.

    A process that only lost its connection takes over the others' reason. Later calls give the first one's answer.
    """
    if world_size() == 1:
        return sentence, True
    if not _verdict:
        import torch.distributed as dist

        _verdict.append(_agree("" if _lost(error) else sentence) if dist.is_initialized() else (sentence, rank() == 0))
    return _verdict[0]


def tell(sentence: str, error: BaseException) -> None:
    """Print once, in the process where it went wrong, why there is no result."""
    reason, mine = failed(sentence, error)
    if mine:
        print(f"rgpo-run: {reason}", file=sys.stderr, flush=True)


_verdict: list[tuple[str, bool]] = []


def _lost(error: BaseException) -> bool:
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _agree(sentence: str) -> tuple[str, bool]:
    import torch.distributed as dist

    store = dist.distributed_c10d._get_default_store()
    keys = [f"rgpo/failed/{k}" for k in range(world_size())]
    store.set(keys[rank()], sentence)
    ends = time.monotonic() + PATIENCE_S
    while not store.check(keys) and time.monotonic() < ends:
        time.sleep(0.05)
    said = {k: store.get(key).decode() for k, key in enumerate(keys) if store.check([key])}
    told = [k for k, words in said.items() if words]
    if len(told) == world_size():
        return said[0], rank() == 0
    if told:
        return f"process {told[0]} of {world_size()}: {said[told[0]]}", rank() == told[0]
    silent = ", ".join(str(k) for k in range(world_size()) if k not in said) or "?"
    return (
        f"process {silent} of {world_size()} died without a word (killed, or out of memory); repeat the command to go on.",
        rank() == min(said),
    )
