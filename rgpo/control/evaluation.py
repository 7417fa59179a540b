"""Episodes of a trained control policy: their returns, and a video of one of them."""

from __future__ import annotations

import importlib.util
import io
import math
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rgpo import atomic
from rgpo.control.actions import heads
from rgpo.control.actor import Actor
from rgpo.control.envs.described import wrapped
from rgpo.control.spaces import describe, observation_size
from rgpo.core.rollout import Array
from rgpo.errors import ConfigError, NonFiniteError, blamed, described, first_line, require

if TYPE_CHECKING:
    from rgpo.control.envs.vector_env import Env, VectorEnv
    from rgpo.control.task import Control

LONGEST_EPISODE = 10_000  # steps after which an episode without a time limit is cut
AT_A_TIME = 64  # environments
MAX_FRAMES, MAX_WIDTH, MIN_SIDE, MAX_FPS = 400, 360, 16, 25.0  # of a video; sides in pixels
RENDERERS = ("egl", "osmesa")


def returns(task: Control, actor: Actor, num_episodes: int, seed: int, deterministic: bool) -> tuple[Array, int]:
    """Raw, undiscounted returns (num_episodes,), and the number of episodes that were cut; episode i starts from seed + i.

    Raises: NonFiniteError if a reward or an observation is NaN or infinite.
    """
    found: list[Array] = []
    num_cut = 0
    for begin in range(0, num_episodes, AT_A_TIME):
        env = task.make_env(min(AT_A_TIME, num_episodes - begin))
        rng = np.random.default_rng([seed, begin])
        try:
            total, cut = _episodes(env, actor, seed + begin, None if deterministic else rng)
        finally:
            env.close()
        if not np.isfinite(total).all():
            raise NonFiniteError(f"reward of {task.full_id} became NaN or infinite in an evaluation episode.")
        found.append(total)
        num_cut += cut
    return np.concatenate(found), num_cut


def _episodes(env: VectorEnv, actor: Actor, seed: int, rng: np.random.Generator | None) -> tuple[Array, int]:
    """Returns (E,) of the first episode of every environment, and the number of episodes that were cut."""
    trained = actor.description
    for what, now, then in (
        ("observations", observation_size(describe(env.observation_space, "")), observation_size(trained["observation_space"])),
        ("actions", heads(describe(env.action_space, "")), heads(trained["action_space"])),
    ):
        remedy = "restore the environment, or train again"
        if now != then:
            raise ConfigError(
                f"{trained['env_id']}: its {what} are others than those that the policy was trained with; {remedy}."
            )
    seen = env.reset(seed)
    running = [np.ones(env.num_envs, bool)]  # which episodes each step belongs to
    while running[-1].any() and len(running) <= LONGEST_EPISODE:
        if not np.isfinite(seen).all():
            raise NonFiniteError(f"observation of {actor.description['env_id']} became NaN or infinite in an evaluation episode.")
        step = env.step(actor.draw(seen, rng))
        running.append(running[-1] & ~(step.terminated | step.truncated))
        seen = step.observation
    total: Array = np.where(running[:-1], env.rewards(), 0.0).sum(0)
    return total, int(running[-1].sum())


def film(task: Control, actor: Actor, folder: Path, seed: int) -> Path:
    """Write one deterministic episode as episode.mp4, or as episode.gif if imageio has no ffmpeg; returns the path.

    Raises: ConfigError if the environment cannot be rendered here.
    """
    frames, fps = _frames(task, actor, seed)
    name, contents = _encoded(np.stack(frames), fps)
    atomic.make_folder(folder)
    atomic.remove_temporary(folder)
    atomic.write_bytes(folder / name, contents)
    return folder / name


def _encoded(frames: Array, fps: float) -> tuple[str, bytes]:
    """Name and contents of a video of frames (T, H, W, 3)."""
    import imageio.v3 as imageio

    stream = io.BytesIO()
    if importlib.util.find_spec("imageio_ffmpeg") is not None:
        imageio.imwrite(stream, frames, extension=".mp4", plugin="FFMPEG", fps=fps, macro_block_size=2)
        return "episode.mp4", stream.getvalue()
    imageio.imwrite(stream, frames, extension=".gif", plugin="pillow", duration=1000 / fps, loop=0)
    return "episode.gif", stream.getvalue()


def _frames(task: Control, actor: Actor, seed: int) -> tuple[list[Array], float]:
    """Frames (H, W, 3) uint8 of an episode at equal intervals, and the frame rate."""
    env, first = _drawable(task, seed)
    try:
        fps = _frames_per_second(env, task.full_id)
        stride = max(1, round(fps / MAX_FPS))
        frames, seen, t, over = [_drawn(env, task.full_id, None)], first, 0, False
        while not over and len(frames) < MAX_FRAMES:
            seen, terminated, truncated = _step(env, task.full_id, actor(seen))
            t, over = t + 1, terminated or truncated
            if t % stride == 0 or over:
                frames.append(_drawn(env, task.full_id, frames[0]))
        return frames, fps / stride
    finally:
        env.close()


def _step(env: Env, env_id: str, action: object) -> tuple[object, bool, bool]:
    """Observation, terminated and truncated after a step.

    Raises: ConfigError if the environment raises, as some do only when they are rendered.
    """
    when = "in step() while it was drawn; leave it out."
    with blamed(lambda error: ConfigError(f"video=true: {env_id} raised {described(error)} {when}")):
        observation, _, terminated, truncated, _ = env.step(action)
    return observation, bool(terminated), bool(truncated)


def _frames_per_second(env: Env, env_id: str) -> float:
    """Raises: ConfigError if the environment's metadata has no positive number."""
    given = env.metadata.get("render_fps") or 30
    try:
        fps = float(given)
    except (TypeError, ValueError):
        fps = 0.0
    require(0 < fps < math.inf, "video", "true", f"{env_id} has render_fps={given} in its metadata; give it a number above 0.")
    return fps


def _drawable(task: Control, seed: int) -> tuple[Env, object]:
    """An environment that has rendered a picture, and its first observation; without a screen, MuJoCo's renderers are tried.

    Raises: ConfigError if no picture can be rendered.
    """
    env_id, kwargs = task.full_id, task.env_kwargs
    problems: dict[str, list[str]] = {}  # text of an error -> renderers that raised it
    for renderer in _renderers():
        env = None
        try:
            with _Renderer(renderer), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import gymnasium

                env = wrapped(gymnasium.make(env_id, **{**kwargs, "render_mode": "rgb_array"}), task.wrappers)
                first, _ = env.reset(seed=seed)
                _require_picture(env.render())
            return env, first
        except (Exception, SystemExit) as error:  # of the environment, or of a graphics library
            problems.setdefault(first_line(error), []).append(renderer)
            if env is not None:
                _close(env)
    several = len(problems) > 1
    why = "; ".join(f"{text} with MUJOCO_GL={'/'.join(names)}" if several else text for text, names in problems.items())
    raise ConfigError(f"video=true: {env_id} cannot be drawn here ({why}); leave video out.")


def _drawn(env: Env, env_id: str, first: Array | None) -> Array:
    """The next frame of a video, which must have the size of the first.

    Raises: ConfigError if the environment renders none, or one of another size.
    """
    try:
        picture = env.render()
        _require_picture(picture)
        small = _small(picture)
        if first is not None and small.shape != first.shape:
            raise ValueError("render() returned pictures of different sizes")
        return small
    except (Exception, SystemExit) as error:  # the environment's own
        why = f"sys.exit({error.code!r})" if isinstance(error, SystemExit) else first_line(error)
        raise ConfigError(f"video=true: {env_id} cannot be drawn to its end ({why}); leave video out.") from error


def _require_picture(picture: object) -> None:
    """Raises: ValueError for anything but a picture in color."""
    if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] < 3 or not picture.size:
        raise ValueError(f"render() returned {_named(picture)} and no picture (height, width, 3)")


def _named(picture: object) -> str:
    return f"an array of shape {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__


def _close(env: Env) -> None:
    try:
        env.close()
    except Exception as error:  # a renderer that never worked
        warnings.warn(f"close() failed ({type(error).__name__})", stacklevel=2)


def _renderers() -> tuple[str, ...]:
    """Values of MUJOCO_GL to try: the user's choice, the screen, or libraries that need none."""
    if os.environ.get("MUJOCO_GL") or os.environ.get("DISPLAY") or sys.platform == "darwin":
        return ("",)
    return RENDERERS


class _Renderer:
    """Context that sets MUJOCO_GL and the like while MuJoCo's and pygame's libraries are loaded; "" changes nothing."""

    def __init__(self, name: str) -> None:
        self.variables = {"MUJOCO_GL": name, "PYOPENGL_PLATFORM": name, "SDL_VIDEODRIVER": "dummy"} if name else {}

    def __enter__(self) -> None:
        self.before = {key: os.environ.get(key) for key in self.variables}
        os.environ.update(self.variables)

    def __exit__(self, *_: object) -> None:
        for key, value in self.before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _small(picture: Array) -> Array:
    """Resize to at most MAX_WIDTH wide and at least MIN_SIDE per side, both even, as video codecs require; floats: 0 to 1."""
    k = -(-picture.shape[1] // MAX_WIDTH)
    small = picture[::k, ::k, :3]
    if small.dtype.kind == "f":
        small = np.rint(255 * np.clip(small, 0.0, 1.0))
    small = np.ascontiguousarray(small, np.uint8)
    larger = -(-MIN_SIDE // min(small.shape[:2]))
    small = small.repeat(larger, 0).repeat(larger, 1)
    return small[: small.shape[0] // 2 * 2, : small.shape[1] // 2 * 2]
