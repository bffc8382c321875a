"""Each recipe of examples/guides/environments.md, run as printed on a rollout of its environment.

The rollout is what a training loop receives: batched, reset where an episode ended, cut where the rollout is full. The
episodes are recorded separately, before anything is reset. The oracle takes them one by one, each as a rollout of its
own, so nothing of the resetting is left in the reference. `pytest -s` prints the largest difference of each recipe.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib.metadata
import inspect
import itertools
import re
import sys
import warnings
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import pages
from support.laws import assert_close
from support.oracle import oracle

import gae_jax

PAGE = "examples/guides/environments.md"
N = 4
LIMIT = 12  # steps: short enough for time limits and failures both to be frequent
PARAMETERS = {"gamma": 0.99, "lambda_": 0.95}
OLD_GYMNAX = "gymnax below 1.0"
RECURRENT = "A recurrent critic"
NEXT_STEP = "gymnasium, `AutoresetMode.NEXT_STEP`, and envpool"


def test_gymnasium_next_step():
    check_next_step(record(gymnasium_rows, "NEXT_STEP", rollouts=2))


@pytest.mark.parametrize("interface", ["gymnasium", "gym"])
def test_envpool(interface):
    check_next_step(record(envpool_rows, interface, rollouts=2))


def test_envpool_counter_after_a_lost_life():
    """The page advises against `info["elapsed_step"] == 0`: it is False where Atari's `episodic_life` resets."""
    with standard_promotion():
        envpool = pytest.importorskip("envpool")
        envs = envpool.make_gymnasium("Breakout-v5", num_envs=1, seed=0, episodic_life=True)
    envs.reset()
    for _ in range(1000):
        _, _, terminated, _, _ = envs.step(np.ones(1, np.int32))
        if terminated[0]:
            break
    _, rewards, terminated, truncated, info = envs.step(np.ones(1, np.int32))
    assert (rewards[0], terminated[0], truncated[0]) == (0, False, False)
    assert info["lives"][0] == 4
    assert info["elapsed_step"][0] > 0


def test_envpool_dm_discount_at_a_time_limit():
    """The page advises against envpool's `dm` interface: a time limit looks like a termination there."""
    pytest.importorskip("dm_env")
    with standard_promotion():
        envpool = pytest.importorskip("envpool")
        envs = envpool.make_dm("CartPole-v1", num_envs=1, seed=0, max_episode_steps=3)
    envs.reset()
    steps = [envs.step(np.zeros(1, np.int32)) for _ in range(3)]
    assert [(int(x.step_type[0]), float(x.discount[0])) for x in steps] == [(1, 1.0), (1, 1.0), (2, 0.0)]


@pytest.mark.parametrize("pool_of", ["walks", "envpool"])
def test_envpool_asynchronous(pool_of):
    """The second rollout begins with the last row of each environment, of which one is the end of an episode."""
    recipe = pages.recipes(PAGE)["envpool, asynchronous"]
    mistakes = [
        ("jnp.argsort(env_ids, stable=True)", "jnp.arange(len(env_ids))"),
        ("& ~no_step", ""),
        ("r[1:]", "r[:-1]"),
    ]
    errors = {mistake: [] for mistake in [("", ""), *mistakes]}
    for rows, episodes in record_pool(AsyncWalks() if pool_of == "walks" else async_envpool(), rollouts=2):
        result = run_in_jit(recipe, rows)
        want = np.concatenate(
            [truth(x, False, value_fn) for worker in episodes for x in worker]
        )  # by worker, then by time
        keep, values = result["keep"], value_fn(rows["obs"])[result["rows"]]
        assert_close([result["targets"]], [result["advantages"] + values])
        for mistake, found in errors.items():
            got = run_in_jit(recipe.replace(*mistake), rows)["advantages"][keep]
            found.append(np.abs(got - want).max() / np.sqrt(np.mean(want**2)))
    difference, *planted = (max(x) for x in errors.values())
    print(
        f"envpool, asynchronous: {len(recipe.splitlines())} lines, largest difference {difference:.1e};",
        "with the mistakes",
        *(f"{x:.2g}" for x in planted),
    )
    assert difference < 1e-5
    assert min(planted) > 0.01


def run_in_jit(recipe, arrays):
    """The arrays that the recipe computes."""
    others = pages.imports(PAGE) | PARAMETERS | {"value_fn": value_fn}

    def outputs(arrays):
        return {name: x for name, x in pages.run(recipe, others | arrays).items() if isinstance(x, jax.Array)}

    return jax.jit(outputs)(arrays)


def check_next_step(recordings):
    """The second rollout begins with a row that only resets, and the recipe needs `ended` of the first one there."""
    first, second = recordings
    assert not second.live[0].all()
    none = np.zeros(N, bool)
    result = check(NEXT_STEP, first, {"ended": none}, naive=calls(mask=None))
    np.testing.assert_array_equal(result["keep"], first.live)
    ended = result["ended"]
    check(NEXT_STEP, second, {"ended": ended}, naive=calls(mask=None))
    with pytest.raises(AssertionError):  # the ends of the rollout before are forgotten
        check(NEXT_STEP, second, {"ended": none}, naive=calls(mask=None))


def test_gymnasium_same_step():
    for recording in record(gymnasium_rows, "SAME_STEP", rollouts=2):
        next_values = value_fn(recording.names["obs"][1:])  # of the next episode, where one ended
        check("gymnasium, `AutoresetMode.SAME_STEP`", recording, naive=calls(final_values=next_values))


def test_gymnasium_disabled():
    for recording in record(gymnasium_rows, "DISABLED", rollouts=2):
        check("gymnasium, `AutoresetMode.DISABLED`", recording, naive=truncation_as_termination)


@pytest.mark.examples
def test_gymnax():
    (recording,) = record(gymnax_rows)
    next_values = value_fn(recording.names["obs"][1:])
    check("gymnax", recording, naive=calls(final_values=next_values))


def test_old_gymnax():
    (recording,) = record(old_gymnax_rows, OldWalk(), OldParams(max_steps_in_episode=LIMIT))
    check(OLD_GYMNAX, recording, {"GymnaxWrapper": GymnaxWrapper}, naive=truncation_as_termination)


@pytest.mark.examples
def test_old_gymnax_itself():
    gymnax = pytest.importorskip("gymnax")
    if not importlib.metadata.version("gymnax").startswith("0."):
        pytest.skip("needs gymnax below 1.0")
    env, params = gymnax.make("CartPole-v1")
    (recording,) = record(old_gymnax_rows, env, params.replace(max_steps_in_episode=LIMIT))
    check(OLD_GYMNAX, recording, {"GymnaxWrapper": GymnaxWrapper}, naive=truncation_as_termination)


def test_old_gymnax_where_the_limit_and_a_termination_coincide():
    """Then `done` is True in both calls of `step_env`, and the step is a termination."""
    env = wrapper_of(OLD_GYMNAX, GymnaxWrapper=GymnaxWrapper, jax=jax, jnp=jnp)(OldWalk())
    state, params = OldState(place=jnp.array([1.4, 0.0]), time=jnp.array(LIMIT - 1)), OldParams(LIMIT)
    for action, terminates in (1.0, True), (-1.0, False):
        *_, done, info = env.step(jax.random.key(0), state, jnp.float32(action), params)
        assert done
        assert info["terminated"] == terminates


@pytest.mark.examples
def test_brax():
    """The recording holds the final observations; the recipe does not use them."""
    check("Brax, its own wrappers", brax_recording(), naive=truncation_as_termination, final_observation_lost=True)


@pytest.mark.examples
def test_brax_with_the_final_observation():
    recording = brax_recording()
    assert_final_observation_is_nowhere_else(recording)
    next_values = value_fn(recording.names["obs"][1:])
    names = {"brax": sys.modules["brax"]}
    check("Brax, the final observation kept", recording, names, naive=calls(final_values=next_values))


@pytest.mark.examples
def test_brax_in_purejaxrl():
    """`info` as the page has it holds the flag; with Brax's own dict there, `LogWrapper` would change the carry."""
    training = pytest.importorskip("brax.envs.wrappers.training")
    (line,) = re.findall(r'`(\{"truncation": [^`]*\})` instead', pages.read(PAGE))
    wrapped = training.AutoResetWrapper(training.EpisodeWrapper(endless_environment(), LIMIT, action_repeat=1))

    def steps(of_info):
        def step(state, _):
            next_state = wrapped.step(state, jnp.zeros(1))
            info = eval(of_info, {"next_state": next_state})
            info["returned_episode"] = next_state.done > 0.5  # as `LogWrapper` writes
            return next_state, info

        with standard_promotion():
            return jax.lax.scan(step, wrapped.reset(jax.random.key(0)), length=3 * LIMIT)[1]

    np.testing.assert_array_equal(np.flatnonzero(steps(line)["truncation"]), LIMIT * np.arange(1, 4) - 1)
    with pytest.raises(TypeError, match="carry"):
        steps("next_state.info")


def test_playground():
    (recording,) = record(playground_rows, False)
    check("Brax, its own wrappers", recording, naive=truncation_as_termination, final_observation_lost=True)


def test_playground_full_reset():
    (recording,) = record(playground_rows, True)
    assert not recording.names["info"]["truncation"].any()  # playground 0.2.0, and why the recipe keeps it
    names = {"mujoco_playground": sys.modules["mujoco_playground"]}
    check("MuJoCo Playground, `full_reset=True`", recording, names, naive=truncation_as_termination)


def test_dm_env():
    """The first reward is NaN: the recipe does not read it."""
    for recording in record(dm_env_rows, rollouts=2):
        names = recording.names
        assert not recording.live.all()
        for name, first in (("rewards", np.nan), ("is_first", True), ("is_terminal", False)):
            names[name] = np.concatenate([np.full((1, N), first), names[name]])
        heading = "dm_env, jumanji and Dreamer's replay"
        result = check(heading, recording, naive=resets_as_transitions)
        np.testing.assert_array_equal(result["keep"], recording.live)
        arrays = {name: names[name] for name in ("obs", "rewards", "is_first", "is_terminal")}
        assert_close([run_in_jit(pages.recipes(PAGE)[heading], arrays)["advantages"]], [result["advantages"]])
        arrays["rewards"] = np.nan_to_num(arrays["rewards"])
        shifted = run_in_jit(pages.recipes(PAGE)[heading].replace("rewards[1:]", "rewards[:-1]"), arrays)
        error = np.abs(shifted["advantages"] - result["advantages"]).max() / np.std(result["advantages"])
        print(f"{heading}: with the rewards of the row before, off by {error:.2g}")
        assert error > 0.1


# A recurrent critic.


def test_recurrent_critic():
    """Each episode by itself, with its final observation; the hidden state and the reset flag may not be others."""
    (recording,) = record(gymnasium_rows, "DISABLED")
    names, recipe = recurrent_names(recording), pages.recipes(PAGE)[RECURRENT]
    names["final_obs"] = names["next_obs"]
    want = advantages_of(recording, values_of=recurrent_values)
    result = pages.run(recipe, names)
    assert_close([result["advantages"]], [want])
    inside = jax.jit(lambda obs: pages.run(recipe, names | {"obs": obs})["advantages"])(names["obs"])
    assert_close([inside], [want])
    mistakes = [
        ("jnp.zeros_like(resets[1:])", "resets[1:]"),  # the final observation as the first of an episode
        ("hiddens[:-1]", "hiddens[1:]"),  # the hidden state after the reset
        ("hiddens[:-1]", "jnp.concatenate([hidden[None], hiddens[:-2]])"),  # of the row before
    ]
    for printed, instead in mistakes:
        assert printed in recipe
        wrong = pages.run(recipe.replace(printed, instead), names)["advantages"]
        assert np.abs(wrong - want).max() > 0.01 * np.abs(want).max()


def test_recurrent_critic_with_a_pair_as_its_hidden_state():
    (recording,) = record(gymnasium_rows, "DISABLED")
    names = recurrent_names(recording)
    pair = "jax.tree.map(lambda x: x[:-1], hiddens)"
    assert f"write `{pair}` for `hiddens[:-1]`" in pages.read(PAGE)

    def critic(hidden, obs, reset):
        hidden, value = recurrent_critic(hidden[0], obs, reset)
        return (hidden, -hidden), value

    names |= {"final_obs": names["next_obs"], "critic": critic, "hidden": (names["hidden"], names["hidden"])}
    result = pages.run(pages.recipes(PAGE)[RECURRENT].replace("hiddens[:-1]", pair), names)
    assert_close([result["advantages"]], [advantages_of(recording, values_of=recurrent_values)])


def test_recurrent_critic_in_next_step():
    """Where `resets[1:]` is `~mask`, as the page says, and not where it is the flags of the step before."""
    (recording,) = record(gymnasium_rows, "NEXT_STEP")
    names, want = recurrent_names(recording), advantages_of(recording, values_of=recurrent_values)
    mask, ends = recording.live, recording.names["terminated"] | recording.names["truncated"]
    assert "if `resets[1:]` is `~mask`" in pages.read(PAGE)
    errors = []
    for flags in ~mask, ends:
        names["resets"] = np.concatenate([np.ones((1, N), bool), flags])
        values = pages.run(pages.recipes(PAGE)[RECURRENT].partition("_, final")[0], names)["values"]
        result = pages.run(pages.recipes(PAGE)[NEXT_STEP], names | {"value_fn": lambda _, values=values: values})
        errors.append(np.abs(result["advantages"] - want).max() / np.abs(want).max())
    assert errors[0] < 1e-5
    assert errors[1] > 0.01


def recurrent_names(recording):
    names = recording.names
    ends = names["terminated"] | names["truncated"]
    names |= {"resets": np.concatenate([np.ones((1, N), bool), ends]), "ended": np.zeros(N, bool)}
    # The hidden state before the rollout is not 0, but reset in the first row.
    return pages.imports(PAGE) | PARAMETERS | names | {"critic": recurrent_critic, "hidden": jnp.ones((N, 8))}


def recurrent_weights():
    rng = np.random.default_rng(1)
    return [rng.normal(size=shape).astype(np.float32) for shape in ((4, 8), (8, 8), (8,))]


def recurrent_critic(hidden, obs, reset):
    of_obs, of_hidden, of_value = recurrent_weights()
    hidden = jnp.tanh(jnp.asarray(obs, jnp.float32) @ of_obs + jnp.where(reset[:, None], 0, hidden) @ of_hidden)
    return hidden, hidden @ of_value


def recurrent_values(obs):
    """The same for one episode from its first observation on, in float64."""
    of_obs, of_hidden, of_value = (np.asarray(x, np.float64) for x in recurrent_weights())
    hidden, values = np.zeros(8), []
    for x in obs:
        hidden = np.tanh(np.float64(x) @ of_obs + hidden @ of_hidden)
        values.append(hidden @ of_value)
    return np.array(values)


# Rows that are no samples.


def sample_lines(*, mask):
    """The lines of the page, the one of the mask if there is a mask."""
    (first, second, *others) = next(x for x in pages.blocks(PAGE) if x.startswith("keep = ")).splitlines(keepends=True)
    assert second.startswith("keep &= mask")
    return "".join([first, second if mask else "", *others])


def test_dropped_rows_are_no_samples():
    """The figure of the page: what `normalize` makes of them, and what it gives with the lines that are printed."""
    steps, limit = 256, 20
    rewards = np.random.default_rng(0).normal(1, 1, (steps, 8)).astype(np.float32)
    terminated = np.zeros(rewards.shape, bool)
    truncated = np.broadcast_to(np.arange(1, steps + 1)[:, None] % limit == 0, rewards.shape)
    advantages, _ = gae_jax.gae(
        rewards, 0 * rewards, terminated, truncated, gamma=0.99, lambda_=0.95, bootstrap_value=0 * rewards[0]
    )
    text = pages.read(PAGE).replace("\n", " ")
    figures = r"time limit of (\d+) steps, γ = (\S+) and λ = (\S+), the normalized .* dropped rows was (-\d\.\d)"
    ((*parameters, figure),) = re.findall(figures, text)
    assert [float(x) for x in parameters] == [limit, *PARAMETERS.values()]
    np.testing.assert_allclose(gae_jax.normalize(advantages)[truncated], float(figure), atol=0.05)
    names = {"advantages": advantages, "terminated": terminated, "truncated": truncated}
    names |= pages.imports(PAGE) | {"losses": np.where(truncated, np.nan, rewards)}
    result = pages.run(sample_lines(mask=False), names)
    assert not result["advantages"][truncated].any()
    np.testing.assert_allclose(result["advantages"][~truncated].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(result["advantages"][~truncated].std(), 1, atol=1e-6)
    np.testing.assert_allclose(result["loss"], rewards[~truncated].mean(), rtol=1e-5)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32])
def test_rows_that_are_kept(dtype):
    """`terminated` wins where both flags are set, so the row is not dropped; Brax's flags are floats."""
    terminated, truncated = np.array([[1, 1, 0, 0, 1], [0, 1, 1, 0, 0]], dtype)
    mask, advantages = np.array([1, 1, 1, 0, 0], bool), np.ones(5, np.float32)
    names = {"advantages": advantages, "terminated": terminated, "truncated": truncated, "mask": mask}
    names |= pages.imports(PAGE) | {"losses": advantages}
    names |= {name: jnp.asarray(names[name]) for name in ("terminated", "truncated")}  # stricter than NumPy's
    keep = pages.run(sample_lines(mask=True), names)["keep"]
    np.testing.assert_array_equal(keep, [True, True, False, False, False])
    keep = pages.run(sample_lines(mask=False), names)["keep"]
    np.testing.assert_array_equal(keep, [True, True, False, True, True])


def test_every_recipe_is_short_and_has_a_test():
    source = inspect.getsource(sys.modules[__name__])
    for heading, recipe in pages.recipes(PAGE).items():
        assert f'"{heading}"' in source
        assert len(recipe.splitlines()) <= 14
        assert "\nadvantages, targets = gae(" in recipe


# The comparison.


def check(heading, recording, names=None, *, naive, final_observation_lost=False):
    """Asserts that the recipe gives each transition its advantage within its own episode; `naive` must not."""
    assert worth_testing(recording.episodes, recording.live)
    recipe = pages.recipes(PAGE)[heading]
    names = {**pages.imports(PAGE), **recording.names, **(names or {}), **PARAMETERS, "value_fn": value_fn}
    result = pages.run(recipe, names)
    advantages = advantages_of(recording, final_observation_lost)
    *values, last_val = value_fn(recording.names["obs"])
    want = [advantages, advantages + np.asarray(values)]
    assert_close([result["advantages"], result["targets"]], want)
    stored = {"traj_batch": SimpleNamespace(value=jnp.stack(values)), "last_val": last_val}
    assert "value_fn(obs)" in recipe
    result_of_stored = pages.run(recipe.replace("value_fn(obs)", stored_values()), names | stored)
    assert_close([result_of_stored["advantages"], result_of_stored["targets"]], want)
    difference = np.abs(result["advantages"] - advantages).max() / np.sqrt(np.mean(advantages**2))
    print(f"{heading}: {len(recipe.splitlines())} lines, largest difference {difference:.1e} of the root mean square")
    errors = np.abs(pages.run(recipe, names | {"gae": naive})["advantages"] - advantages)
    assert errors.max() > 0.01 * np.abs(advantages).max()  # a thousand times the tolerance
    return result


def stored_values():
    """What the page has in the place of `value_fn(obs)` for an agent that stores its values."""
    (code,) = re.findall(r"`(jnp\.concatenate[^`]*)`\s+in its place", pages.read(PAGE))
    return code


def advantages_of(recording, final_observation_lost=False, values_of=None):
    """The advantages of each transition within its own episode, and 0 in a row that is not a transition."""
    advantages = np.zeros(recording.live.shape)
    for n, episodes in enumerate(recording.episodes):
        rows = [truth(x, final_observation_lost, values_of or value_fn) for x in episodes]
        advantages[recording.live[:, n], n] = np.concatenate(rows)
    return advantages


def truth(episode, final_observation_lost, values_of):
    """The advantages of one episode, or of the part of it that lies in the rollout."""
    last = np.arange(len(episode.rewards)) == len(episode.rewards) - 1
    values = values_of(np.stack(episode.obs))
    final_values = None if final_observation_lost else values[1:]
    flags = last & episode.terminated, last & episode.truncated
    return oracle(episode.rewards, values, *flags, final_values=final_values, **PARAMETERS)[0]


def value_fn(obs):
    """A critic: linear, with random weights."""
    weights = np.random.default_rng(0).normal(size=obs.shape[-1]).astype(np.float32)
    return jnp.asarray(obs, jnp.float32) @ weights


def calls(**changes):
    """`gae` with arguments other than the recipe's."""
    return lambda *args, **kwargs: gae_jax.gae(*args, **{**kwargs, **changes})


def truncation_as_termination(rewards, values, terminated, truncated, **kwargs):
    return gae_jax.gae(rewards, values, jnp.logical_or(terminated, truncated), **{**kwargs, "final_values": None})


def resets_as_transitions(rewards, values, terminated, truncated, **kwargs):
    return gae_jax.gae(np.nan_to_num(rewards), values, terminated, **kwargs)


def assert_final_observation_is_nowhere_else(recording):
    """Where an episode was cut off, neither the observation before the step nor after the reset is the final one."""
    obs, info = recording.names["obs"], recording.names["info"]
    cut = info["truncation"] != 0
    for other in (obs[:-1], obs[1:]):
        assert np.abs(other - info["final_obs"])[cut].max(axis=-1).min() > 1e-3


# The recording.


@dataclasses.dataclass
class Episode:
    """What happened before any reset, or the part of it that lies in the rollout."""

    obs: list[np.ndarray]  # one more than there are rewards
    rewards: list[float] = dataclasses.field(default_factory=list)
    terminated: bool = False
    truncated: bool = False

    @property
    def ended(self):
        return self.terminated or self.truncated


class Log:
    """The episodes of one environment, recorded where it steps."""

    def __init__(self):
        self.episodes: list[Episode] = []
        self.steps = 0  # since the beginning
        self.age = 0  # steps of the episode

    def reset(self, obs):
        self.episodes.append(Episode([np.asarray(obs)]))
        self.age = 0

    def step(self, obs, reward, terminated, truncated=None):
        """Appends a transition; without `truncated`, the time limit is counted here."""
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
        """Begins another rollout, and returns the episodes of the one before."""
        episodes, last = self.episodes, self.episodes[-1]
        self.episodes = [] if last.ended else [Episode([last.obs[-1]])]
        return [x for x in episodes if x.rewards]


@dataclasses.dataclass
class Recording:
    """One rollout: the names that the recipe uses, which rows are transitions, and the episodes of each worker."""

    names: dict[str, Any]
    live: np.ndarray
    episodes: list[list[Episode]]


def record(rows_of, *args, rollouts=1):
    """Steps the environment through rollouts, each until it is `worth_testing`."""
    logs = [Log() for _ in range(N)]
    with contextlib.closing(rows_of(logs, *args)) as rows:
        return [record_one(rows, logs) for _ in range(rollouts)]


def record_one(rows, logs):
    taken, live = [], []
    with standard_promotion():
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
    """Enough ends of either kind, several episodes of each worker, and in the last row both an end and no end."""
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
            reward = float(obs[1])  # CartPole's own reward is 1 in every step, which would hide a shift by one row
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


class Walk:
    """Adds its actions to a random place, ends beyond a bound, and logs its episodes; its time limit is the log's."""

    def __init__(self, seed, log):
        self.rng, self.log = np.random.default_rng(seed), log

    def reset(self):
        self.place = self.rng.uniform(-1, 1, 2).astype(np.float32)
        self.log.reset(self.place)
        return self.place

    def step(self, action):
        """Returns the observation, the reward and the two flags."""
        self.place = self.place + np.float32(action) * np.array([0.5, -0.25], np.float32)
        terminated = self.place[0] > 1.5
        self.log.step(self.place, self.place[1], terminated)
        return self.place, self.place[1], terminated, self.log.episodes[-1].truncated


def dm_env_rows(logs):
    """`step` after the end of an episode ignores the action, and returns the first observation of the next."""
    dm_env = pytest.importorskip("dm_env")

    class Environment(dm_env.Environment):
        action_spec = observation_spec = None

        def __init__(self, walk):
            self.walk, self.ended = walk, True

        def reset(self):
            self.ended = False
            return dm_env.restart(self.walk.reset())

        def step(self, action):
            if self.ended:
                return self.reset()
            obs, reward, terminated, truncated = self.walk.step(action)
            self.ended = terminated or truncated
            of_kind = dm_env.termination if terminated else dm_env.truncation if truncated else dm_env.transition
            return of_kind(reward, obs)

    envs = [Environment(Walk(seed, log)) for seed, log in enumerate(logs)]
    rng = np.random.default_rng(0)
    steps = [env.reset() for env in envs]
    while True:
        obs = np.stack([x.observation for x in steps])
        steps = [env.step(action) for env, action in zip(envs, rng.uniform(-1, 1, N), strict=True)]
        yield {
            "obs": obs,
            "following": np.stack([x.observation for x in steps]),
            "rewards": np.array([np.nan if x.reward is None else x.reward for x in steps], np.float32),
            "is_first": np.array([x.step_type == 0 for x in steps]),
            "is_terminal": np.array([(x.step_type == 2) and (x.discount == 0) for x in steps]),
        }


class AsyncWalks:
    """Returns two of N environments at a time, as an asynchronous envpool does, in random order."""

    def __init__(self):
        self.rng = np.random.default_rng(0)
        self.walks = [Walk(seed, Log()) for seed in range(N)]
        self.ready = [self.first(i) for i in range(N)]

    def first(self, i):
        return i, self.walks[i].reset(), np.float32(0), False, False

    def recv(self):
        chosen = [self.ready.pop(self.rng.integers(len(self.ready))) for _ in range(2)]
        ids, obs, rewards, terminated, truncated = (np.array(x) for x in zip(*chosen, strict=True))
        self.ended = terminated | truncated
        return obs, rewards, terminated, truncated, {"env_id": ids}

    def send(self, actions, ids):
        for action, i, ended in zip(actions, ids, self.ended, strict=True):
            self.ready.append(self.first(i) if ended else (i, *self.walks[i].step(2 * action - 1)))


def async_envpool():
    with standard_promotion():
        envpool = pytest.importorskip("envpool")
        envs = envpool.make_gymnasium("CartPole-v1", num_envs=N, batch_size=2, max_episode_steps=LIMIT, seed=0)
    envs.async_reset()
    return envs


def record_pool(envs, rollouts):
    """Yields what was received, flat, with the last row of each environment before; and the episodes of each."""
    logs, rng = [Log() for _ in range(N)], np.random.default_rng(0)
    last = [(n, None, 0, True, False) for n in range(N)]
    kept = []
    for _ in range(rollouts):
        with standard_promotion():
            taken = [*kept, *receive(envs, logs, last, rng)]
        kept = list(last)
        columns = zip(("env_ids", "obs", "rewards", "terminated", "truncated"), zip(*taken, strict=True), strict=True)
        yield {name: np.array(x) for name, x in columns}, [log.cut() for log in logs]


def receive(envs, logs, last, rng):
    """Steps the environments until the last one ends an episode; `last` is the last row of each, and is changed."""
    for t in itertools.count():
        if t > 80 and last[-1][3]:
            return
        obs, _, terminated, truncated, info = envs.recv()
        envs.send(rng.integers(2, size=2).astype(np.int32), info["env_id"])
        for n, *row in zip(info["env_id"], obs, terminated, truncated, strict=True):
            resets = last[n][3] or last[n][4]
            reward = np.float32(0 if resets else row[0][1])  # CartPole's own is 1, which would hide a shift
            if resets:
                logs[n].reset(row[0])
            else:
                logs[n].step(row[0], reward, *row[1:])
            last[n] = (n, row[0], reward, *row[1:])
            yield last[n]


def envpool_rows(logs, interface):
    """The rows that only reset are those in which CartPole's step counter is 0; the recipe does not use the counter."""
    with standard_promotion():
        envpool = pytest.importorskip("envpool")
        envs = envpool.make("CartPole-v1", env_type=interface, num_envs=N, max_episode_steps=LIMIT, seed=0)
    rng = np.random.default_rng(0)
    obs, _ = envs.reset()
    for n, log in enumerate(logs):
        log.reset(obs[n])
    while True:
        following, _, terminated, truncated, info = envs.step(rng.integers(2, size=N).astype(np.int32))
        resets = info["elapsed_step"] == 0
        rewards = np.where(resets, 0, following[:, 1]).astype(np.float32)
        for n, log in enumerate(logs):
            if resets[n]:
                log.reset(following[n])
            else:
                log.step(following[n], rewards[n], terminated[n])
        yield {"obs": obs, "following": following, "rewards": rewards, "terminated": terminated, "truncated": truncated}
        obs = following


def gymnax_rows(logs):
    """Beside `step`, runs `step_env` from the same state: the transition without the reset."""
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


class GymnaxWrapper:
    """As in gymnax and in PureJaxRL."""

    def __init__(self, env):
        self._env = env

    def __getattr__(self, name):
        return getattr(self._env, name)


class OldParams(NamedTuple):
    max_steps_in_episode: int

    def replace(self, **changes):
        return self._replace(**changes)


class OldState(NamedTuple):
    place: jax.Array
    time: jax.Array


class OldWalk:
    """Has the methods of an environment of gymnax below 1.0: `done` contains the time limit."""

    def reset_env(self, key, params):
        place = jax.random.uniform(key, (2,), minval=-1, maxval=1)
        return place, OldState(place=place, time=jnp.array(0))

    reset = reset_env

    def step_env(self, key, state, action, params):
        place = state.place + jnp.float32(action) * jnp.array([0.5, -0.25])
        state = OldState(place=place, time=state.time + 1)
        done = (place[0] > 1.5) | (state.time >= params.max_steps_in_episode)
        return place, state, place[1], done, {"discount": jnp.float32(~done)}


def old_gymnax_rows(logs, env, params):
    """Beside the wrapped `step`, runs `step_env` of the environment from the same state, with a limit far away."""
    env = wrapper_of(OLD_GYMNAX, GymnaxWrapper=GymnaxWrapper, jax=jax, jnp=jnp)(env)
    step, true_step = (jax.jit(jax.vmap(x, (0, 0, 0, None))) for x in (env.step, env.step_env))
    keys = jax.random.split(jax.random.key(0), N)
    obs, state = jax.vmap(env.reset, (0, None))(keys, params)
    for n, log in enumerate(logs):
        log.reset(obs[n])
    for t in itertools.count(1):
        keys = jax.random.split(jax.random.key(t), N)
        actions = jax.random.bernoulli(jax.random.key(-t), shape=(N,)).astype(int)
        true_obs, _, true_reward, true_terminated, _ = true_step(
            keys, state, actions, params.replace(max_steps_in_episode=10**6)
        )
        following, state, rewards, done, info = step(keys, state, actions, params)
        log_all(logs, true_obs, true_reward, true_terminated, following)
        yield {"obs": obs, "following": following, "rewards": rewards, "done": done, "info": info}
        obs = following


@functools.cache
def brax_recording():
    return record(brax_rows)[0]


def brax_rows(logs):
    """Beside the wrapped environment, steps each worker in the bare one, and restarts it from its first state."""
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
        push = jnp.linspace(0, 1, N)[:, None]  # to one side: some workers fall before the limit, others do not
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
    """Playground's wrapper around a small environment: one of Playground's compiles for a minute."""
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
        """Adds its actions to a random place, and ends beyond a bound."""

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


def endless_environment():
    brax = sys.modules["brax"]

    class Endless(brax.envs.Env):
        observation_size = action_size = backend = property(lambda self: None)

        def reset(self, rng):
            return brax.envs.State(jnp.zeros(()), jnp.zeros(2), jnp.zeros(()), jnp.zeros(()))

        def step(self, state, action):
            return state.replace(reward=jnp.ones(()))

    return Endless()


def brax_row(obs, state):
    info = {k: state.info[k] for k in ("truncation", "final_obs", "AutoResetWrapper_preserve_info") if k in state.info}
    return {"obs": obs, "following": state.obs, "rewards": state.reward, "done": state.done, "info": info}


def log_all(logs, obs, reward, terminated, following):
    for n, log in enumerate(logs):
        if log.step(obs[n], reward[n], terminated[n]):
            log.reset(following[n])


def wrapper_of(heading, **names):
    """The class that a recipe defines, needed to record the rollout that the rest of the recipe runs on."""
    body = ast.parse(pages.recipes(PAGE)[heading]).body
    exec(compile(ast.Module([x for x in body if isinstance(x, ast.ClassDef)], []), heading, "exec"), names)
    return names["KeepFinal"]


def compile_fast(fn):
    """Compiles without optimization: a physics engine compiles for longer than it runs here."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


@contextlib.contextmanager
def standard_promotion():
    """Environments rely on implicit promotion; their warnings are ignored."""
    with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        yield
