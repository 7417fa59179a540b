"""Vector environments: the direct backend equals gymnasium bit for bit, and a restored state continues bit for bit."""

import pickle
import re

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

from rgpo.control.envs import replay
from rgpo.control.envs.gymnasium_env import GymnasiumVector
from rgpo.control.envs.make_env import make_vector_env
from rgpo.control.envs.mujoco_env import load_model
from rgpo.control.envs.mujoco_tasks import TASKS
from rgpo.control.envs.vector_env import VectorEnv


@pytest.fixture(autouse=True)
def _scratch_folder(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo writes MUJOCO_LOG.TXT to the current folder when gymnasium loads HalfCheetah."""
    monkeypatch.chdir(tmp_path)


def make(env_id: str, num_envs: int, backend: str = "auto", **kwargs: object) -> VectorEnv:
    return make_vector_env(env_id, num_envs, backend, kwargs=kwargs)


def random_actions(env, num_steps: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if isinstance(env.action_space, gymnasium.spaces.Discrete):
        return rng.integers(env.action_space.n, size=(num_steps, env.num_envs))
    size = (num_steps, env.num_envs, *env.action_space.shape)
    return (1.5 * rng.standard_normal(size)).astype(np.float32)  # often out of bounds


def play(env, actions: np.ndarray) -> list[np.ndarray]:
    steps = [[np.copy(x) for x in env.step(action)] for action in actions]
    return [*(np.stack(column) for column in zip(*steps, strict=True)), env.rewards()]


@pytest.mark.parametrize("env_id", sorted(TASKS))
def test_direct_mujoco_equals_gymnasium_bit_for_bit(env_id: str) -> None:
    direct, gym = make(env_id, 2, "mujoco"), make(env_id, 2, "gymnasium")
    assert type(direct) is not type(gym) and direct.observation_size == gym.observation_size
    assert np.array_equal(direct.reset(7), gym.reset(7))
    actions = random_actions(direct, 1100, 0)  # past the time limit of 1,000 steps
    for ours, theirs in zip(play(direct, actions), play(gym, actions), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("xml", sorted({task.xml for task in TASKS.values()}))
def test_physics_has_one_island_and_no_clock(xml: str) -> None:
    """One tree is one island, so the search for islands is off; a running clock would make some timer's duration positive."""
    model = load_model(xml)
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, 5)
    assert model.ntree == 1
    stages = [data.timer[i] for i in range(int(mujoco.mjtTimer.mjNTIMER))]
    assert any(stage.number for stage in stages) and not any(stage.duration for stage in stages)


def test_the_gymnasium_backend_is_gymnasium_itself() -> None:
    """GymnasiumVector, which the direct backend is compared with, against plain gymnasium.make."""
    env, vector = gymnasium.make("Hopper-v4"), GymnasiumVector("Hopper-v4", 1)
    observation, _ = env.reset(seed=3)
    assert np.array_equal(vector.reset(3)[0], observation)
    for action in random_actions(vector, 300, 1)[:, 0]:
        clipped = np.clip(action, env.action_space.low, env.action_space.high)
        observation, reward, terminated, truncated, _ = env.step(clipped)
        step = vector.step(action[None])
        assert np.array_equal(step.final_observation[0], observation) and vector.rewards()[0, 0] == reward
        assert (step.terminated[0], step.truncated[0]) == (terminated, truncated)
        if terminated or truncated:
            observation, _ = env.reset()
        assert np.array_equal(step.observation[0], observation)


def test_same_step_autoreset_keeps_the_true_last_observation() -> None:
    env = make("CartPole-v1", 3)
    env.reset(0)
    ended = 0
    for action in random_actions(env, 200, 2):
        step = env.step(action)
        done = step.terminated | step.truncated
        ended += done.sum()
        assert np.array_equal(step.final_observation[~done], step.observation[~done])
        beyond = np.abs(step.final_observation[done][:, [0, 2]]) > [2.4, 0.2095]
        assert beyond.any(1).all()  # the true final state is outside the limits
        assert (np.abs(step.observation[done]) <= 0.05).all()  # the next episode's first one is inside
    assert ended > 5


@pytest.mark.parametrize("env_id", ["Hopper-v4", "Ant-v5", "CartPole-v1", "Pendulum-v1", "Acrobot-v1", "FrozenLake-v1"])
def test_a_restored_state_continues_bit_for_bit(env_id: str, tmp_path) -> None:
    env = make(env_id, 2)
    env.reset(11)
    actions = random_actions(env, 260, 3)
    play(env, actions[:130])
    torch.save(env.state_dict(), tmp_path / "state.pt")
    rest = play(env, actions[130:])
    fresh = make(env_id, 2)
    fresh.reset(99)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for expected, got in zip(rest, play(fresh, actions[130:]), strict=True):
        assert np.array_equal(expected, got)


def test_different_copies_and_seeds_differ() -> None:
    env = make("Hopper-v4", 2)
    first = env.reset(1).copy()
    assert not np.array_equal(first[0], first[1])
    assert np.array_equal(env.reset(1), first) and not np.array_equal(env.reset(5), first)


class Forgetful(gymnasium.Env):
    """Draws from the global generator, so it cannot be replayed."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2, start=3)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return np.random.random(1).astype(np.float32), {}  # noqa: NPY002

    def step(self, action):
        assert action in (3, 4)
        return np.random.random(1).astype(np.float32), 0.0, False, False, {}  # noqa: NPY002


class Counter(gymnasium.Env):
    """Episodes of 5 steps that observe the time as an image; with `remembers`, rewards depend on the number of past episodes."""

    observation_space = gymnasium.spaces.Box(0, 255, (2, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1, 1, (2, 2), np.float64)

    def __init__(self, remembers: bool = False) -> None:
        self.remembers, self.episode = remembers, 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.episode = 0, self.episode + 1
        return np.zeros((2, 3), np.uint8), {}

    def step(self, action):
        assert self.action_space.contains(action)  # clipped, with the space's shape and type
        self.time += 1
        reward = action.sum() + (self.episode if self.remembers else 0)
        return np.full((2, 3), self.time, np.uint8), reward, self.time == 5, False, {}


class Telling(Forgetful):
    """Observes a text beside an image."""

    observation_space = gymnasium.spaces.Dict(image=gymnasium.spaces.Box(0, 1, (2,)), text=gymnasium.spaces.Text(5))


gymnasium.register("Forgetful-v0", Forgetful)
gymnasium.register("Telling-v0", Telling)
gymnasium.register("Counter-v0", Counter)


def test_shapes_types_and_final_observations_of_an_arbitrary_environment() -> None:
    env = make("Counter-v0", 2)
    assert env.observation_size == 6 and np.array_equal(env.reset(0), np.zeros((2, 6)))
    actions = random_actions(env, 10, 0)
    observation, terminated, truncated, final, reward = play(env, actions)
    assert (observation.dtype, final.dtype, reward.dtype) == (np.uint8, np.uint8, np.float64)  # pixels stay bytes
    assert observation[:, 0, 0].tolist() == [1, 2, 3, 4, 0] * 2 and final[:, 1, 5].tolist() == [1, 2, 3, 4, 5] * 2
    assert np.array_equal(np.flatnonzero(terminated[:, 0]), [4, 9]) and not truncated.any()
    assert np.allclose(reward, np.clip(actions, -1, 1).sum((2, 3), dtype=np.float64), atol=1e-6)


@pytest.mark.parametrize("remembers", [False, True])
def test_state_carried_over_from_earlier_episodes_is_detected(remembers: bool) -> None:
    env = make("Counter-v0", 2, remembers=remembers)
    env.reset(0)
    actions = random_actions(env, 20, 0)
    play(env, actions[:13])  # third step of the third episode
    fresh, state = make("Counter-v0", 2, remembers=remembers), env.state_dict()
    restarts = fresh.load_state_dict(state)
    if remembers:
        assert [restart.env for restart in restarts] == [0, 1] and all("other numbers" in restart.why for restart in restarts)
    else:
        assert not restarts
        for expected, got in zip(play(env, actions[13:]), play(fresh, actions[13:]), strict=True):
            assert np.array_equal(expected, got)


def test_a_state_of_other_environments_is_refused() -> None:
    env = make("Hopper-v4", 2)
    env.reset(0)
    for other in (make("Hopper-v4", 3), make("Hopper-v4", 2, "gymnasium"), make("Ant-v4", 2)):
        with pytest.raises(ValueError, match="resume with the configuration"):
            other.load_state_dict(env.state_dict())


def test_at_least_one_copy() -> None:
    with pytest.raises(ValueError, match=r"^task\.num_envs=0: must be at least 1\.$"):
        make("CartPole-v1", 0)


def test_an_environment_that_cannot_be_replayed_begins_anew() -> None:
    env = make("Forgetful-v0", 1)
    env.reset(0)
    play(env, random_actions(env, 5, 0))
    fresh = make("Forgetful-v0", 1)
    (restart,) = fresh.load_state_dict(env.state_dict())
    assert restart.env == 0 and "other numbers" in restart.why and restart.observation.shape == (1,)


def test_the_state_of_an_endless_episode_does_not_grow() -> None:
    env = make("Forgetful-v0", 1)
    env.reset(0)
    play(env, random_actions(env, replay.MAX_ACTIONS + 1, 0))
    state = env.state_dict()
    assert len(pickle.dumps(state)) < 2000
    (restart,) = make("Forgetful-v0", 1).load_state_dict(state)
    assert restart.why == replay.TOO_LONG


@pytest.mark.parametrize(
    ("env_id", "kwargs", "words"),
    [
        ("Hoper-v4", {}, "Hopper-v4"),
        ("Telling-v0", {}, r"observation\.text is a Text, which is no fixed number .*filter_keys:\[image\]\}\] does"),
        ("HalfCheetah-v9", {}, "HalfCheetah-v5"),
        ("CartPole-v1", {"speed": 3}, "speed"),
        ("CartPole-v1", {"backend": "mujoco"}, "task.backend=mujoco: cannot run CartPole-v1"),
        ("Ant-v5", {"backend": "mujoco", "frame_skip": 2}, "without them"),
        ("ALE/Pong-v5", {}, "pip install 'ale-py', then write task.env_id=ale_py:ALE/Pong-v5"),
        ("PongNoFrameskip-v4", {}, "ale_py:PongNoFrameskip-v4"),
        ("MiniGrid-Empty-5x5-v0", {}, "pip install 'minigrid', then write task.env_id=minigrid:MiniGrid-Empty-5x5-v0"),
        ("FetchReach-v4", {}, "pip install 'gymnasium-robotics', then write task.env_id=gymnasium_robotics:FetchReach-v4"),
        ("dm_control/walker-walk-v0", {}, r"pip install 'shimmy\[dm-control\]', then write task.env_id=shimmy:dm_control/walk"),
        ("minigrid:MiniGrid-Empty-5x5-v0", {}, "minigrid cannot be imported; pip install 'minigrid'"),
        ("Valve-v0", {}, "written with the module that registers it, module:Valve-v0"),
        ("nowhere:Valve-v0", {}, "nowhere cannot be imported; there is no such module in the current directory"),
        ("test_environments:Counter-v7", {}, "registers no Counter-v7; .* Did you mean test_environments:Counter-v0"),
    ],
)
def test_an_environment_that_cannot_be_made_is_refused_in_one_line(env_id: str, kwargs: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make(env_id, 1, **kwargs)
    assert re.fullmatch(rf"task\.(env_id={re.escape(env_id)}|backend=mujoco): .+ .+[.?]", str(caught.value))
    assert env_id in str(caught.value)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^task\.backend=isaac: unknown backend; choose auto, gymnasium, mujoco\.$"):
        make("CartPole-v1", 1, "isaac")


def test_one_hot_observations() -> None:
    env = make("FrozenLake-v1", 2)
    assert env.observation_size == 16
    assert np.array_equal(env.reset(0), np.eye(16)[[0, 0]])
