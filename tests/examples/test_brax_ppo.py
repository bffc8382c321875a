"""examples/brax_ppo/ppo.py: its formulas, that it learns, and its runs: killed, resumed, played."""

import collections
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
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from scipy.stats import norm

for package in ("brax", "matplotlib", "optax", "orbax.checkpoint", "rich", "tyro"):
    pytest.importorskip(package, reason="the script needs the extra `examples`")
brax_env, brax_ppo, checkpoints, optax, runs = map(
    pytest.importorskip, ("brax_env", "brax_ppo", "checkpoints", "optax", "runs")
)

pytestmark = [pytest.mark.examples, pytest.mark.usefixtures("fast_compilation")]
ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 240


@pytest.fixture(autouse=True)
def as_users_run_it():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def on_devices(devices, fn, in_specs, out_specs):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("devices",))
    return jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False))


def test_running_statistics_are_those_of_all_observations():
    rng = np.random.default_rng(0)
    rollouts = [3 + 2 * rng.normal(size=(5, 4, 3)).astype(np.float32) for _ in range(3)]
    statistics = brax_ppo.Statistics(jnp.zeros(()), jnp.zeros(3), jnp.ones(3))
    for obs in rollouts:
        statistics = on_devices(2, brax_ppo.Statistics.update, (P(), P(None, "devices")), P())(statistics, obs)
    every = np.concatenate(rollouts).reshape(-1, 3)
    assert int(statistics.number) == len(every)
    np.testing.assert_allclose(statistics.mean, every.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.variance, every.var(0), rtol=1e-4)


def test_log_density():
    action, mean, std = np.array([[0.3, -1.0]]), np.array([[0.0, 0.5]]), np.array([0.5, 2.0])
    want = norm.logpdf(action, mean, std).sum(-1)
    np.testing.assert_allclose(brax_ppo.log_density(*map(jnp.asarray, (action, mean, np.log(std)))), want, rtol=1e-5)


class Pose(NamedTuple):
    """Where the links are."""

    x: jax.Array


class State(NamedTuple):
    """What PPO reads of a Brax state."""

    obs: jax.Array
    reward: jax.Array
    done: jax.Array
    info: Any
    pipeline_state: Any


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
        return State(obs, reward, done, info, Pose(obs))


def test_it_learns():
    recipe = {"num_envs": 16, "num_steps": 16, "minibatches": 4, "reward_scale": 1.0, "learning_rate": 1e-2}
    config = brax_ppo.Config(steps=16 * 16 * 40, devices=2, **recipe)
    ppo = brax_ppo.PPO(config, Target())

    def train(key):
        state = ppo.init(key, ppo.reset(key))
        state, metrics = lax.scan(lambda state, _: ppo.learn(state, *ppo.act(state, 1.0)), state, length=40)
        return state.iteration, metrics, ppo.act(state, 0.0)[1].action

    out_specs = P(), P(), P(None, "devices")
    iteration, metrics, action = on_devices(2, train, P(), out_specs)(jax.random.PRNGKey(0))
    np.testing.assert_allclose(action, 0.5, atol=0.1)  # without noise
    assert metrics["value_loss"][-1] < metrics["value_loss"][0]
    assert int(iteration) == config.iterations == 40
    assert metrics["episodes"][:3].tolist() == [16 * 5, 16 * 6, 16 * 5]  # over all environments


def test_an_epoch_averages_over_the_rows_of_all_devices():
    ppo = brax_ppo.PPO(brax_ppo.Config(num_envs=4, num_steps=5, minibatches=2, epochs=1, devices=2), Target())
    ppo.loss = types.MethodType(lambda self, params, row, advantage, target: (jnp.zeros(()), {"row": row.action}), ppo)
    ppo.optimizer = optax.set_to_zero()

    def learn(key):
        state = ppo.init(key, ppo.reset(key))
        env, rollout = ppo.act(state, 1.0)
        return ppo.learn(state, env, rollout)[1]["row"], rollout.action

    mean, actions = on_devices(2, learn, P(), (P(), P(None, "devices")))(jax.random.PRNGKey(0))
    assert len(np.unique(actions)) == 20  # no two environments draw the same noise
    np.testing.assert_allclose(mean, actions.mean(), rtol=1e-5)


RUN = ["--env", "fast", "--steps", "25600", "--num-envs", "8", "--num-steps", "16", "--episode-length", "64"]
RUN += ["--minibatches", "2", "--epochs", "2", "--devices", "1"]


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs the script in this process; returns what it printed, and that is nothing on standard error."""
    before = signal.getsignal(signal.SIGINT)

    def main(*options):
        monkeypatch.setattr(runs, "with_devices", lambda config: config)  # JAX has made the devices of all tests
        monkeypatch.setattr(sys, "argv", ["brax_ppo.py", *map(str, options)])
        trainer.main("", brax_ppo.Config, brax_ppo.PPO)
        printed, complaints = capfd.readouterr()
        assert not complaints  # of Brax, MuJoCo, JAXopt and Orbax there are many, and none is the user's business
        return printed

    yield main
    signal.signal(signal.SIGINT, before)


def state_in(directory):
    return {name: x.tobytes() for name, x in checkpoints.load(directory).arrays.items()}


@pytest.mark.timeout(3 * SECONDS)
def test_a_killed_run_goes_on_to_the_same_state(run, monkeypatch, tmp_path):
    whole, killed, traced = tmp_path / "whole", tmp_path / "killed", collections.Counter()
    make = environment.make

    def make_and_count(config):
        env = make(config)
        for name in ("reset", "step"):
            monkeypatch.setattr(env, name, counted(name, getattr(env, name)))
        return env

    def counted(name, fn):
        return lambda *arguments: traced.update([name]) or fn(*arguments)

    monkeypatch.setattr(brax_env, "make", make_and_count)
    printed = run(*RUN, "--out", whole)
    assert traced == {"reset": 1, "step": 1}  # for the training and for both evaluations
    written = ["checkpoints", "config.json", "learning_curve.png", "metrics.csv"]
    assert sorted(path.name for path in whole.iterdir()) == written
    assert f"written to {whole}: {', '.join(written)}\n" in printed
    rows = np.loadtxt(whole / "metrics.csv", delimiter=",", skiprows=1)
    assert (len(rows), rows[-1, 0]) == (100, 25600)

    monkeypatch.undo()
    command = [sys.executable, ROOT / "examples" / "brax_ppo.py", *RUN, "--out", killed]
    like_this_one = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT)}
    environment = os.environ | like_this_one
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        while not any(path.name.isdigit() for path in (killed / "checkpoints").glob("*")):  # renamed when it is whole
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert 0 < checkpoints.load(killed).arrays["iteration"] < 200

    printed = run("--resume", "--env", "fast", "--out", killed)
    assert state_in(killed) == state_in(whole)
    (after,) = re.findall(r"^after training: (return .*)$", printed, re.MULTILINE)
    assert run("--play", whole).splitlines()[-2:] == [f"after training: {after}", "drawing"]


@pytest.mark.timeout(SECONDS)
def test_ctrl_c_ends_the_training_early_and_writes_everything(run, monkeypatch, tmp_path):
    report = trainer.report

    def report_and_interrupt(config, done, *arguments):
        if done == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return report(config, done, *arguments)

    monkeypatch.setattr(runs, "report", report_and_interrupt)
    printed = run(*RUN, "--out", tmp_path)
    assert re.search(r"^to go on: .* --resume$", printed, re.MULTILINE)
    assert checkpoints.load(tmp_path).arrays["iteration"] == 20
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + 10
    assert (tmp_path / "learning_curve.png").exists()
