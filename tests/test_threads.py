"""Environments on several threads: the same bits, and errors of a thread reach the caller."""

from __future__ import annotations

import gc
import threading
from functools import partial

import numpy as np
import pytest

from rgpo.control.envs.crew import Crew
from rgpo.control.envs.make_env import make_vector_env


@pytest.mark.parametrize("env_id", ["HalfCheetah-v4", "Ant-v5"])
@pytest.mark.parametrize("num_threads", [2, 3, 9])
def test_threads_do_not_change_a_bit(env_id: str, num_threads: int) -> None:
    one, many = make_vector_env(env_id, 5, "auto"), make_vector_env(env_id, 5, "auto")
    many.use_threads(num_threads)
    assert np.array_equal(one.reset(1), many.reset(1))
    rng = np.random.default_rng(0)
    for _ in range(60):
        action = rng.standard_normal((5, *one.action_space.shape)).astype(np.float32)
        assert all(np.array_equal(x, y) for x, y in zip(one.step(action), many.step(action), strict=True))
    assert np.array_equal(one.rewards(), many.rewards())


def test_every_part_is_called_once_per_call_in_a_thread_of_its_own() -> None:
    calls: list[tuple[int, int]] = []
    parts = [lambda i=i: calls.append((i, threading.get_ident())) for i in range(3)]
    crew = Crew(parts)
    for _ in range(50):
        crew()
    assert sorted(i for i, _ in calls) == sorted([0, 1, 2] * 50)
    assert len(set(calls)) == 3 and (0, threading.get_ident()) in calls


@pytest.mark.parametrize("place", [0, 1])
def test_an_error_of_any_part_reaches_the_caller(place: int) -> None:
    def fail() -> None:
        raise ValueError("physics")

    with pytest.raises(ValueError, match="physics"):
        Crew([fail if i == place else (lambda: None) for i in range(2)])()


def crew_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "rgpo-crew"}


def test_threads_end_with_their_environments() -> None:
    before = crew_threads()
    env = make_vector_env("HalfCheetah-v4", 4, "auto")
    env.use_threads(4)
    own = crew_threads() - before
    assert len(own) == 3
    del env
    gc.collect()
    for thread in own:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in own)


def test_an_error_of_a_part_is_raised_once() -> None:
    """In the call in which it occurred, when all parts have returned, and not in the next one."""
    fails, calls = [True], [0, 0, 0]

    def work(i: int) -> None:
        calls[i] += 1
        if i and fails[0]:
            raise ValueError("of a part")

    crew = Crew([partial(work, i) for i in range(3)])
    with pytest.raises(ValueError, match="of a part"):
        crew()
    fails[0] = False
    crew()
    assert calls == [2, 2, 2]
