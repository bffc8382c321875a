"""Episodes of a policy without noise: their returns, and a replay of the first."""

import functools
import pathlib
from typing import Any

import brax_env
import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from run_options import Run


def play(config: Any, run: Run, source: pathlib.Path, agent_type: type[Any]) -> None:
    """Evaluates the policy of the run in `source`, and draws an episode."""
    print(f"{title(config)}: compiling", flush=True)
    agent = agent_type(config, brax_env.make(config))
    key, eval_key = keys(config)
    like = jax.eval_shape(agent.init, key)
    like = {"params": like.params, "statistics": like.statistics}
    policy = checkpoints.fill(source / "policy.npz", run.stored or {}, like)
    run_episodes = jax.jit(functools.partial(episodes, config, agent))
    returns, film = jax.device_get(run_episodes((policy["params"], policy["statistics"]), eval_key))
    print(describe(returns))
    write_replay(config, run, agent.env, film)


def episodes(config: Any, agent: Any, policy: tuple[Any, Any], key: Array) -> tuple[Array, tuple[Array, ...]]:
    """Plays one fresh episode in each evaluation environment, without noise.

    Args:
      config: the options that decide the result.
      agent: the functions of the algorithm.
      policy: the parameters of the networks, and the statistics of the observations.
      key: decides how the episodes begin.

    Returns:
      The returns of all episodes, `[eval_envs]`, and a film of the first episode: over time the positions and
      rotations of the robot's links, the return so far, and 1 until the episode ends.
    """

    def step(carry: Any, _: None) -> tuple[Any, tuple[Array, ...]]:
        env, running, returns = carry
        frame = env.pipeline_state.x.pos[0], env.pipeline_state.x.rot[0], returns[0], running[0]
        env = agent.env.step(env, agent.best_action(*policy, env.obs))
        return (env, running * (1 - env.done), returns + running * env.reward), frame

    env = agent.env.reset(jax.random.split(key, config.eval_envs))
    carry = env, jnp.ones_like(env.done), jnp.zeros_like(env.reward)
    (_, _, returns), film = lax.scan(step, carry, length=config.episode_length)
    return returns, film


def keys(config: Any) -> Array:
    """Returns two keys, for training and for evaluation."""
    return jax.random.split(jax.random.PRNGKey(config.seed))  # of the old kind: Brax accepts no other


def title(config: Any) -> str:
    """Names a run."""
    return f"{config.env} ({config.backend}), seed {config.seed}"


def describe(returns: np.ndarray) -> str:
    """Mean and standard deviation of returns, in words."""
    return f"return {returns.mean():,.1f} ± {returns.std():,.1f} over {len(returns)} episodes"


def write_replay(config: Any, run: Run, env: Any, film: tuple[np.ndarray, ...]) -> None:
    """Draws the episode of a film, if the robot has a body."""
    import replay

    robot = env.unwrapped
    if not hasattr(robot, "sys"):
        print(f"no replay: {config.env} has no body to draw")
        return
    print("drawing an episode", flush=True)
    episode = replay.Episode(robot.sys, float(robot.dt), *(x[: int(film[-1].sum())] for x in film[:-1]))
    picture, page = run.directory / "replay.gif", run.directory / "replay.html"
    with checkpoints.replacing(picture) as path:
        replay.draw_episode(path, title(config), episode)
    with checkpoints.replacing(page) as path:
        replay.write_page(path, episode)
    print(f"written:\n  {picture}\n  {page} (the whole episode in Brax's viewer, which needs a network)", flush=True)
