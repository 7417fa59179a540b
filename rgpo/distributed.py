"""The processes of one run, started by torchrun or accelerate; every function is a no-op or trivial with a single process.

Every process draws the same random numbers and holds the tokens of the whole rollout; only the forward passes are divided.
Partial results are summed over all processes, so that every process continues with the same numbers. Only rank 0 writes files
and prints.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

from rgpo.errors import MAX_LINE, ConfigError, printable, require

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import Store  # type: ignore[attr-defined]  # missing from its __all__

TIMEOUT = timedelta(minutes=30)  # for one collective call
PATIENCE_S = 3.0  # time for which a failing process waits for the others' error messages
REQUIRED_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
T = TypeVar("T")
P = ParamSpec("P")

_store: list[Store] = []  # the process group's store, once joined; still works after collectives have failed
_agreed: list[tuple[str, bool]] = []  # cached result of agree_on_error


def world_size() -> int:
    """Number of processes of the run."""
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdecimal() else 1


def rank() -> int:
    """Index of this process."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def start() -> None:
    """Join the process group (gloo for CPUs, NCCL for GPUs, one GPU per process); ranks other than 0 stop printing.

    Raises: ConfigError if the environment variables are incomplete or the processes cannot connect.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    require(size.isdecimal() and int(size) > 0, "WORLD_SIZE", size, "must be a positive whole number; torchrun sets it.")
    if world_size() == 1:
        return
    missing = [name for name in REQUIRED_VARIABLES if name not in os.environ]
    require(not missing, "WORLD_SIZE", size, f"is set but {', '.join(missing)} is not; start with torchrun, or unset WORLD_SIZE.")
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    gpus, local = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if gpus:
        require(local < gpus, "LOCAL_RANK", local, f"this machine has only {gpus} GPUs; start one process per GPU.")
        torch.cuda.set_device(local)
    try:
        store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
        store.set_timeout(TIMEOUT)
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=rank(), world_size=world_size())
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"WORLD_SIZE={size}: the processes cannot connect ({error}); start with torchrun.") from error
    _store[:] = [store]
    if rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123


def stop() -> None:
    """Leave the process group."""
    if world_size() > 1:
        import torch.distributed as dist

        _store.clear()
        if dist.is_initialized():
            dist.destroy_process_group()


def refuse_many(kind: str) -> None:
    """Reject more than one process, for tasks that run in a single process.

    Raises: ConfigError if there are several processes.
    """
    remedy = f"{kind} tasks run in one process; start without torchrun (-m runs the jobs of a sweep in parallel)."
    require(world_size() == 1, "WORLD_SIZE", world_size(), remedy)


def on_first(function: Callable[P, None]) -> Callable[P, None]:
    """Decorator: run the function on rank 0 only."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> None:
        if rank() == 0:
            function(*args, **kwargs)

    return called


def local_slice(items: Sequence[object]) -> slice:
    """This process's contiguous share of items; shares have about equal size, and equal neighbors stay together if possible."""
    starts = [i for i in range(len(items)) if i == 0 or items[i] != items[i - 1]]
    if len(starts) < world_size():
        starts = list(range(len(items)))
    bounds = [*starts, len(items)]
    return slice(*(bounds[k * len(starts) // world_size()] for k in (rank(), rank() + 1)))


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of x over the processes."""
    return _reduced(x, "SUM")


def all_reduce_max(x: Tensor) -> Tensor:
    """The maximum of x over the processes."""
    return _reduced(x, "MAX")


def _reduced(x: Tensor, operation: str) -> Tensor:
    if world_size() == 1:
        return x
    import torch.distributed as dist

    x = x.contiguous()
    dist.all_reduce(x, getattr(dist.ReduceOp, operation))
    return x


def all_reduce_in_place(tensors: Iterable[Tensor]) -> None:
    """Replace each contiguous tensor by its sum over the processes."""
    if world_size() == 1:
        return
    import torch.distributed as dist

    for work in [dist.all_reduce(x, async_op=True) for x in tensors]:
        work.wait()


def all_gather(x: T) -> list[T]:
    """Every process's x, in rank order."""
    if world_size() == 1:
        return [x]
    import torch.distributed as dist

    found: list[T | None] = [None] * world_size()
    dist.all_gather_object(found, x)
    return cast(list[T], found)


def agree_on_error(sentence: str, error: BaseException) -> tuple[str, bool]:
    """The reason why the run ends, and whether this process reports it: the lowest rank with its own error does.

    A process that only lost its connection adopts the others' reason. Later calls return the first result.
    """
    if world_size() == 1:
        return sentence, True
    if not _agreed:
        own = "" if _lost_connection(error) else sentence
        _agreed.append(_exchange(_store[0], own) if _store else (sentence, rank() == 0))
    return _agreed[0]


def report_error(sentence: str, error: BaseException) -> None:
    """Print the reason for the failure once, not on every rank."""
    reason, mine = agree_on_error(sentence, error)
    if mine:
        print(f"rgpo-run: {printable(reason, MAX_LINE)}", file=sys.stderr, flush=True)


def _lost_connection(error: BaseException) -> bool:
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _exchange(store: Store, sentence: str) -> tuple[str, bool]:
    """Publish this process's reason ("" for a lost connection), wait for the other processes' reasons and choose one."""
    keys = [f"rgpo/error/{k}" for k in range(world_size())]
    store.set(keys[rank()], sentence)
    deadline = time.monotonic() + PATIENCE_S
    while not store.check(keys) and time.monotonic() < deadline:
        time.sleep(0.05)
    received = {k: store.get(key).decode() for k, key in enumerate(keys) if store.check([key])}
    reasons = {k: reason for k, reason in received.items() if reason}
    if len(reasons) == world_size():  # every process failed by itself: report rank 0's reason
        return received[0], rank() == 0
    if reasons:
        first = min(reasons)
        return f"rank {first}: {reasons[first]}", rank() == first
    silent = [str(k) for k in range(world_size()) if k not in received]
    who = f"rank{'s' * (len(silent) > 1)} {', '.join(silent) or '?'}"
    why = f"{who} exited without an error message (killed or out of memory?); repeat the command to resume."
    return why, rank() == min(received)
