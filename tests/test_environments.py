"""Each recipe of the README, run on a rollout of the environment that it is for, against that environment's episodes.

The rollout is what a training loop sees: batched, reset where it ended, cut where it is full. The episodes are recorded
beside it, before anything is reset, and the oracle takes them one by one, each as a rollout of its own: nothing of the
resetting is left in what the recipe is compared with.
"""

import ast
import contextlib
import dataclasses
import functools
import itertools
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.laws import assert_close
from support.oracle import oracle

import gae_jax

README = Path(__file__).parent.parent / "README.md"
N = 4
LIMIT = 12  # steps: short enough for time limits and failures both to be frequent
PARAMETERS = {"gamma": 0.99, "lambda_": 0.95}


def test_gymnasium_next_step():
    """The second rollout may begin with a row that only resets, and here it does."""
    recordings = record(gymnasium_rows, "NEXT_STEP", rollouts=2)
    assert not recordings[1].live[0].all()
    nobody = np.zeros(N, bool)
    heading = "gymnasium, `AutoresetMode.NEXT_STEP`"
    ended = check(heading, recordings[0], {"ended": nobody}, naive=calls(mask=None))["ended"]
    check(heading, recordings[1], {"ended": ended}, naive=calls(mask=None))
    with pytest.raises(AssertionError):  # who forgets what the rollout before ended with
        check(heading, recordings[1], {"ended": nobody}, naive=calls(mask=None))


def test_gymnasium_same_step():
    for recording in record(gymnasium_rows, "SAME_STEP", rollouts=2):
        next_values = value_fn(recording.names["obs"][1:])  # of the next episode, where one ended
        check("gymnasium, `AutoresetMode.SAME_STEP`", recording, naive=calls(final_values=next_values))


def test_gymnasium_disabled():
    for recording in record(gymnasium_rows, "DISABLED", rollouts=2):
        check("gymnasium, `AutoresetMode.DISABLED`", recording, naive=truncation_as_termination)


def test_gymnax():
    (recording,) = record(gymnax_rows)
    next_values = value_fn(recording.names["obs"][1:])
    check("gymnax", recording, naive=calls(final_values=next_values))


def test_brax():
    """The recording holds the final observations, and the recipe does not look at them."""
    check("Brax, its own wrappers", brax_recording(), naive=truncation_as_termination, final_observation_lost=True)


def test_brax_with_the_final_observation():
    recording = brax_recording()
    assert_final_observation_is_nowhere_else(recording)
    next_values = value_fn(recording.names["obs"][1:])
    names = {"brax": sys.modules["brax"]}
    check("Brax, the final observation kept", recording, names, naive=calls(final_values=next_values))


def test_playground():
    (recording,) = record(playground_rows, False)
    check("Brax, its own wrappers", recording, naive=truncation_as_termination, final_observation_lost=True)


def test_playground_full_reset():
    (recording,) = record(playground_rows, True)
    assert not recording.names["info"]["truncation"].any()  # playground 0.2.0, and why the recipe keeps it
    names = {"mujoco_playground": sys.modules["mujoco_playground"]}
    check("MuJoCo Playground, `full_reset=True`", recording, names, naive=truncation_as_termination)


def test_every_recipe_is_short_and_run_here():
    assert recipes()
    for heading, recipe in recipes().items():
        assert f'"{heading}"' in Path(__file__).read_text()
        assert len(recipe.splitlines()) <= 10
        assert "\nadvantages, targets = gae(" in recipe


# What is compared.


def check(heading, recording, names=None, *, naive, final_observation_lost=False):
    """The recipe gives every transition what the oracle gives it in its own episode, and the naive way does not."""
    assert worth_testing(recording.episodes, recording.live)
    recipe = recipes()[heading]
    names = {**recording.names, **(names or {}), **PARAMETERS, "np": np, "value_fn": value_fn}
    result = run(recipe, names, gae=gae_jax.gae)
    advantages = np.zeros(recording.live.shape)  # 0 in a row that is no transition
    for n, episodes in enumerate(recording.episodes):
        advantages[recording.live[:, n], n] = np.concatenate([truth(x, final_observation_lost) for x in episodes])
    values = value_fn(recording.names["obs"][:-1])
    assert_close([result["advantages"], result["targets"]], [advantages, advantages + np.asarray(values)])
    errors = np.abs(run(recipe, names, gae=naive)["advantages"] - advantages)
    assert errors.max() > 0.01 * np.abs(advantages).max()  # a thousand times the tolerance
    return result


def truth(episode, final_observation_lost):
    """The advantages of one episode, or of the piece of it that lies in the rollout."""
    last = np.arange(len(episode.rewards)) == len(episode.rewards) - 1
    values = value_fn(np.stack(episode.obs))
    final_values = None if final_observation_lost else values[1:]
    flags = last & episode.terminated, last & episode.truncated
    return oracle(episode.rewards, values, *flags, final_values=final_values, **PARAMETERS)[0]


def value_fn(obs):
    """A critic: linear, with random weights."""
    weights = np.random.default_rng(0).normal(size=obs.shape[-1]).astype(np.float32)
    return jnp.asarray(obs, jnp.float32) @ weights


def recipes():
    """The section of the README: heading -> code."""
    section = README.read_text().partition("\n## Recipes\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^### ([^\n]+)\n(?:(?!^### ).)*?^```python\n(.*?)^```$", section, re.M | re.S)
    assert len(blocks) == section.count("\n### ") == section.count("```python")
    return dict(blocks)


def run(code, names, gae):
    names = {**names, "gae": gae}
    exec(code, names)
    return names


def calls(**changes):
    """`gae`, called with something else than the recipe says."""
    return lambda *args, **kwargs: gae_jax.gae(*args, **{**kwargs, **changes})


def truncation_as_termination(rewards, values, terminated, truncated, **kwargs):
    return gae_jax.gae(rewards, values, (terminated != 0) | (truncated != 0), **{**kwargs, "final_values": None})


def assert_final_observation_is_nowhere_else(recording):
    """Where an episode was cut off, neither the observation before the step nor after the reset is the final one."""
    obs, info = recording.names["obs"], recording.names["info"]
    cut = info["truncation"] != 0
    for other in (obs[:-1], obs[1:]):
        assert np.abs(other - info["final_obs"])[cut].max(axis=-1).min() > 1e-3


# How it is recorded.


@dataclasses.dataclass
class Episode:
    """What happened, before any reset; or the piece of it that lies in the rollout."""

    obs: list[np.ndarray]  # one more than there are rewards
    rewards: list[float] = dataclasses.field(default_factory=list)
    terminated: bool = False
    truncated: bool = False

    @property
    def ended(self):
        return self.terminated or self.truncated


class Log:
    """The episodes of one environment, as told by itself."""

    def __init__(self):
        self.episodes: list[Episode] = []
        self.steps = 0  # since the beginning
        self.age = 0  # steps of the episode

    def reset(self, obs):
        self.episodes.append(Episode([np.asarray(obs)]))
        self.age = 0

    def step(self, obs, reward, terminated, truncated=None):
        """Where the environment does not say `truncated`, it is counted here."""
        self.steps += 1
        self.age += 1
        episode = self.episodes[-1]
        assert not episode.ended
        episode.obs.append(np.asarray(obs))
        episode.rewards.append(float(reward))
        episode.terminated = bool(terminated)
        episode.truncated = self.age == LIMIT if truncated is None else bool(truncated)
        return episode.ended

    def cut(self):
        """Begins another rollout, and returns the episodes of the last."""
        episodes, last = self.episodes, self.episodes[-1]
        self.episodes = [] if last.ended else [Episode([last.obs[-1]])]
        return [x for x in episodes if x.rewards]


@dataclasses.dataclass
class Recording:
    """One rollout: what the recipe takes, which rows are transitions, and the episodes of each worker."""

    names: dict[str, Any]
    live: np.ndarray
    episodes: list[list[Episode]]


def record(rows_of, *args, rollouts=1):
    """Steps the environment through rollouts, each until there is in it what is to be tested."""
    logs = [Log() for _ in range(N)]
    with contextlib.closing(rows_of(logs, *args)) as rows:
        return [record_one(rows, logs) for _ in range(rollouts)]


def record_one(rows, logs):
    taken, live = [], []
    with as_environments_want():
        before = [log.steps for log in logs]
        for row in itertools.islice(rows, 200):
            taken.append(row)
            live.append([log.steps - n for log, n in zip(logs, before, strict=True)])
            before = [log.steps for log in logs]
            if worth_testing([[x for x in log.episodes if x.rewards] for log in logs], np.array(live, bool)):
                break
        names = {"infos": [row.pop("infos", None) for row in taken]}
        names |= jax.tree.map(lambda *x: (jnp if isinstance(x[0], jax.Array) else np).stack(x), *taken)
        names["obs"] = np.concatenate([names["obs"], names.pop("following")[-1:]])
    return Recording(names, np.array(live, bool), [log.cut() for log in logs])


def worth_testing(episodes, live):
    """Enough ends of either kind, several episodes of each worker, an end in the last row, and no end there."""
    every = [x for worker in episodes for x in worker]
    at_the_end = {worker[-1].ended for n, worker in enumerate(episodes) if worker and live[-1, n]}
    return (
        sum(x.terminated for x in every) >= 3
        and sum(x.truncated and not x.terminated for x in every) >= 3
        and min(map(len, episodes)) >= 3
        and at_the_end == {True, False}
    )


def gymnasium_rows(logs, mode):
    gymnasium = pytest.importorskip("gymnasium", "1.1")

    class Logged(gymnasium.Wrapper):
        def __init__(self, log):
            super().__init__(gymnasium.make("CartPole-v1", max_episode_steps=LIMIT))
            self.log = log

        def reset(self, **kwargs):
            obs, info = self.env.reset(**kwargs)
            self.log.reset(obs)
            return obs, info

        def step(self, action):
            obs, _, terminated, truncated, info = self.env.step(action)
            reward = float(obs[1])  # CartPole pays 1 for every step, in which no row would be told from the next
            self.log.step(obs, reward, terminated, truncated)
            return obs, reward, terminated, truncated, info

    envs = gymnasium.vector.SyncVectorEnv(
        [functools.partial(Logged, log) for log in logs], autoreset_mode=gymnasium.vector.AutoresetMode[mode]
    )
    rng = np.random.default_rng(0)
    obs, _ = envs.reset(seed=0)
    while True:
        next_obs, rewards, terminated, truncated, infos = envs.step(rng.integers(2, size=N))
        following, ends = next_obs, terminated | truncated
        if mode == "DISABLED" and ends.any():
            following, _ = envs.reset(options={"reset_mask": ends})
        row = {"obs": obs, "next_obs": next_obs, "following": following, "rewards": rewards}
        yield row | {"terminated": terminated, "truncated": truncated, "infos": infos}
        obs = following


def gymnax_rows(logs):
    """Beside `step`, `step_env` from the same state: the transition without the reset."""
    gymnax = pytest.importorskip("gymnax")
    env, params = gymnax.make("CartPole-v1")
    params = params.replace(max_steps_in_episode=LIMIT)
    step, true_step = (jax.jit(jax.vmap(x, (0, 0, 0, None))) for x in (env.step, env.step_env))
    keys = jax.random.split(jax.random.key(0), N)
    obs, state = jax.vmap(env.reset, (0, None))(keys, params)
    for n, log in enumerate(logs):
        log.reset(obs[n])
    for t in itertools.count(1):
        keys = jax.random.split(jax.random.key(t), N)
        actions = jax.random.bernoulli(jax.random.key(-t), shape=(N,)).astype(int)
        true_obs, _, true_reward, true_terminated, _ = true_step(keys, state, actions, params)
        following, state, rewards, terminated, truncated, info = step(keys, state, actions, params)
        row = {"obs": obs, "following": following, "rewards": rewards}
        log_all(logs, true_obs, true_reward, true_terminated, following)
        yield row | {"terminated": terminated, "truncated": truncated, "info": info}
        obs = following


@functools.cache
def brax_recording():
    return record(brax_rows)[0]


def brax_rows(logs):
    """Beside it each worker by hand, in the bare environment: where it ended, from its first state again."""
    training = pytest.importorskip("brax.envs.wrappers.training")
    brax = sys.modules["brax"]
    env = brax.envs.get_environment("inverted_double_pendulum", backend="generalized")
    wrapped = training.EpisodeWrapper(training.VmapWrapper(env), LIMIT, action_repeat=1)
    wrapped = training.AutoResetWrapper(wrapper_of("Brax, the final observation kept", brax=brax)(wrapped))
    step, true_step = compile_fast(wrapped.step), compile_fast(env.step)
    state = compile_fast(wrapped.reset)(jax.random.split(jax.random.PRNGKey(0), N))
    first = true = [jax.tree.map(lambda x, n=n: x[n], state) for n in range(N)]
    for n, log in enumerate(logs):
        log.reset(true[n].obs)
    for t in itertools.count():
        push = jnp.linspace(0, 1, N)[:, None]  # to one side: some fall before the limit, and some do not
        actions = jnp.clip(push + jax.random.uniform(jax.random.key(t), (N, 1), minval=-1, maxval=1), -1, 1)
        obs = state.obs
        state = step(state, actions)
        true = [true_step(x, action) for x, action in zip(true, actions, strict=True)]
        for n, log in enumerate(logs):
            if log.step(true[n].obs, true[n].reward, true[n].done):
                true[n] = first[n]
                log.reset(true[n].obs)
        yield brax_row(obs, state)


def playground_rows(logs, full_reset):
    """Playground's wrapper, and below it an environment of our own: one of theirs compiles for a minute."""
    playground = pytest.importorskip("mujoco_playground")
    training = pytest.importorskip("brax.envs.wrappers.training")
    env = random_walk(playground)
    wrapped = training.EpisodeWrapper(training.VmapWrapper(env), LIMIT, action_repeat=1)
    if full_reset:
        wrapped = wrapper_of("MuJoCo Playground, `full_reset=True`", mujoco_playground=playground)(wrapped)
    wrapped = playground.wrapper.BraxAutoResetWrapper(wrapped, full_reset=full_reset)
    step, true_step = jax.jit(wrapped.step), jax.jit(jax.vmap(env.step))
    state = jax.jit(wrapped.reset)(jax.random.split(jax.random.PRNGKey(0), N))
    for n, log in enumerate(logs):
        log.reset(state.obs[n])
    for t in itertools.count():
        actions = jax.random.uniform(jax.random.key(t), (N, 1), minval=-1, maxval=1)
        true, obs = true_step(state, actions), state.obs
        state = step(state, actions)
        log_all(logs, true.obs, true.reward, true.done, state.obs)
        yield brax_row(obs, state)


def random_walk(playground):
    class RandomWalk(playground.MjxEnv):
        """Adds up its actions from a random place, and ends when they have led too far."""

        xml_path = mj_model = mjx_model = action_size = property(lambda self: None)

        def __init__(self):
            pass

        def reset(self, rng):
            place = jax.random.uniform(rng, (2,), minval=-1, maxval=1)
            return playground.State(place, place, jnp.zeros(()), jnp.zeros(()), {}, {})

        def step(self, state, action):
            place = state.data + jnp.array([0.5, -0.25]) * action
            return state.replace(data=place, obs=place, reward=place[1], done=(place[0] > 1.5).astype(float))

    return RandomWalk()


def brax_row(obs, state):
    info = {k: state.info[k] for k in ("truncation", "final_obs", "AutoResetWrapper_preserve_info") if k in state.info}
    return {"obs": obs, "following": state.obs, "rewards": state.reward, "done": state.done, "info": info}


def log_all(logs, obs, reward, terminated, following):
    for n, log in enumerate(logs):
        if log.step(obs[n], reward[n], terminated[n]):
            log.reset(following[n])


def wrapper_of(heading, **names):
    """The class that a recipe defines: it is needed before there is anything to run the rest on."""
    body = ast.parse(recipes()[heading]).body
    exec(compile(ast.Module([x for x in body if isinstance(x, ast.ClassDef)], []), heading, "exec"), names)
    return names["KeepFinal"]


def compile_fast(fn):
    """A physics engine compiles for longer than it runs here."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


@contextlib.contextmanager
def as_environments_want():
    """They were not written for strict promotion, and what they warn of is their own affair."""
    with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        yield
