"""examples/brax_ppo.py: its formulas, that it learns, and its runs: killed, resumed, played."""

import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax_ppo import PPO, Config, Statistics, log_density
from jax import lax
from scipy.stats import norm

pytestmark = pytest.mark.examples
ROOT = pathlib.Path(__file__).parents[1]
SECONDS = 240


@pytest.fixture(autouse=True)
def as_users_run_it():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def test_running_statistics_are_those_of_all_observations():
    rng = np.random.default_rng(0)
    rollouts = [3 + 2 * rng.normal(size=(5, 4, 3)).astype(np.float32) for _ in range(3)]
    statistics = Statistics(jnp.zeros(()), jnp.zeros(3), jnp.ones(3))
    for obs in rollouts:
        statistics = statistics.update(jnp.asarray(obs))
    every = np.concatenate(rollouts).reshape(-1, 3)
    assert int(statistics.number) == len(every)
    np.testing.assert_allclose(statistics.mean, every.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.variance, every.var(0), rtol=1e-4)


def test_log_density():
    action, mean, std = np.array([[0.3, -1.0]]), np.array([[0.0, 0.5]]), np.array([0.5, 2.0])
    want = norm.logpdf(action, mean, std).sum(-1)
    np.testing.assert_allclose(log_density(*map(jnp.asarray, (action, mean, np.log(std)))), want, rtol=1e-5)


class State(NamedTuple):
    """What PPO reads of a Brax state."""

    obs: jax.Array
    reward: jax.Array
    done: jax.Array
    info: Any


class Target:
    """Rewards actions near 0.5, on whatever observation; each third step is a time limit."""

    action_size = 1

    def reset(self, keys):
        zero = jnp.zeros(len(keys))
        return self.state(zero[:, None] + 1, zero, zero)

    def step(self, state, action):
        count = (state.obs[:, 0] % 3) + 1
        return self.state(count[:, None], -((action[:, 0] - 0.5) ** 2), (count == 3).astype(jnp.float32))

    def state(self, obs, reward, done):
        info = {"truncation": done, "final_obs": obs, "episode_metrics": {"sum_reward": reward}}
        return State(obs, reward, done, info)


def test_it_learns():
    config = Config(num_envs=16, num_steps=16, minibatches=4, steps=16 * 16 * 40, reward_scale=1.0, learning_rate=1e-2)
    ppo = PPO(config, Target())
    train = jax.jit(lambda state: lax.scan(ppo.iterate, state, length=40))
    state, metrics = train(ppo.init(jax.random.PRNGKey(0)))
    action = ppo.best_action(state.params, state.statistics, jnp.array([[1.0], [2.0], [3.0]]))
    np.testing.assert_allclose(action, 0.5, atol=0.1)
    assert metrics["value_loss"][-1] < metrics["value_loss"][0]
    assert int(state.iteration) == 40


def test_the_split_over_devices_keeps_every_row():
    rows = []
    for devices in (1, 2):
        config = dataclasses.replace(Config(num_envs=4, num_steps=3, minibatches=1, epochs=1), devices=devices)
        ppo = PPO(config, Target())
        ppo.loss = types.MethodType(lambda self, params, row, advantage, target: (jnp.zeros(()), {"row": row.obs}), ppo)
        ppo.optimizer = types.SimpleNamespace(update=lambda gradient, state: (gradient, state), init=lambda params: ())
        state = ppo.init(jax.random.PRNGKey(0))
        env, rollout = ppo.act(state, jax.random.PRNGKey(1))
        seen = ppo.learn(state, rollout, env.obs, jax.random.PRNGKey(2))[2]["row"]
        rows.append(float(seen))  # the mean over all rows
    assert rows[0] == pytest.approx(rows[1], rel=1e-6)


RUN = ["--env", "fast", "--steps", "12800", "--num-envs", "8", "--num-steps", "16", "--episode-length", "64"]
RUN += ["--minibatches", "2", "--epochs", "2"]


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Starts the script; what one process compiles, the next one finds."""
    for name in ("brax", "flax", "matplotlib", "optax", "PIL", "rich"):
        pytest.importorskip(name, reason="the script needs the extra `examples`")
    cache = str(tmp_path_factory.mktemp("cache"))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache, "PYTHONPATH": str(ROOT)}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    pipe = subprocess.PIPE

    def start(*options):
        command = [sys.executable, str(ROOT / "examples" / "brax_ppo.py"), *map(str, options)]
        return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)

    return start


def finish(process):
    output, complaints = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, complaints
    assert not complaints  # of Brax, MuJoCo and JAXopt there are many, and none is the user's business
    return output


@pytest.fixture(scope="module")
def finished(launch, tmp_path_factory):
    """A run that nothing disturbed, and what it printed."""
    directory = tmp_path_factory.mktemp("run")
    return directory, finish(launch(*RUN, "--out", directory))


@pytest.mark.timeout(3 * SECONDS)
def test_a_run_writes_what_it_lists(finished):
    directory, output = finished
    files = re.findall(rf"^  {directory}/(\S+)$", output, re.MULTILINE)
    assert files == ["learning_curve.png", "metrics.csv", "policy.npz", "config.json", "checkpoint.npz"]
    assert sorted(path.name for path in directory.iterdir() if path.name != ".lock") == sorted(files)
    assert "warp" not in output
    rows = np.loadtxt(directory / "metrics.csv", delimiter=",", skiprows=1)
    assert rows[-1, 0] == 12800


@pytest.mark.timeout(3 * SECONDS)
def test_a_killed_run_goes_on_to_the_same_policy(finished, launch, tmp_path):
    process = launch(*RUN, "--out", tmp_path)
    while not (tmp_path / "checkpoint.npz").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=SECONDS)
    with np.load(tmp_path / "checkpoint.npz") as stored:
        assert 0 < int(stored["state/iteration"]) < 100
    finish(launch("--resume", "--env", "fast", "--out", tmp_path))
    assert (tmp_path / "policy.npz").read_bytes() == (finished[0] / "policy.npz").read_bytes()


@pytest.mark.timeout(3 * SECONDS)
def test_a_policy_is_played(finished, launch, tmp_path):
    directory, output = finished
    played = finish(launch("--play", directory, "--out", tmp_path))
    (after,) = re.findall(r"^after training: (return .*)$", output, re.MULTILINE)
    assert played.splitlines()[1:] == [after, "no replay: fast has no body to draw"]


@pytest.mark.timeout(SECONDS)
def test_a_finished_run_is_not_overwritten_unasked(finished, launch):
    directory, _ = finished
    process = launch(*RUN, "--out", directory)
    _, complaints = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    assert (
        complaints == f"error: --out: {directory} has a run in it; --resume goes on with it, --overwrite deletes it\n"
    )
    assert (directory / "policy.npz").exists()
