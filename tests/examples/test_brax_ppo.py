"""examples/brax_ppo: the formulas of PPO, that it learns, and its runs in one and two processes: killed and resumed."""

import collections
import dataclasses
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from scipy.stats import norm

for package in ("brax", "flax", "matplotlib", "rich", "tyro"):
    pytest.importorskip(package, reason="the script needs the extra `examples`")
ocp, optax = map(pytest.importorskip, ("orbax.checkpoint", "optax"))
environment, ppo, processes, trainer = map(pytest.importorskip, ("environment", "ppo", "processes", "trainer"))

fixtures = pytest.mark.usefixtures("fast_compilation", "implicit_promotion")
pytestmark = [pytest.mark.examples, fixtures, pytest.mark.timeout(900)]
FOLDERS = f"{pathlib.Path(__file__).parents[2]}{os.pathsep}{pathlib.Path(ppo.__file__).parent}"
SECONDS = 240


def on_devices(devices, fn, in_specs, out_specs):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("devices",))
    return jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False))


def test_running_statistics_are_those_of_all_observations():
    rng = np.random.default_rng(0)
    rollouts = [3 + 2 * rng.normal(size=(5, 4, 3)).astype(np.float32) for _ in range(3)]
    statistics = ppo.Statistics(jnp.zeros(()), jnp.zeros(3), jnp.ones(3))
    for obs in rollouts:
        statistics = on_devices(2, ppo.Statistics.update, (P(), P(None, "devices")), P())(statistics, obs)
    every = np.concatenate(rollouts).reshape(-1, 3)
    assert int(statistics.number) == len(every)
    np.testing.assert_allclose(statistics.mean, every.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.variance, every.var(0), rtol=1e-4)


def test_log_density():
    action, mean, std = np.array([[0.3, -1.0]]), np.array([[0.0, 0.5]]), np.array([0.5, 2.0])
    want = norm.logpdf(action, mean, std).sum(-1)
    np.testing.assert_allclose(ppo.log_density(*map(jnp.asarray, (action, mean, np.log(std)))), want, rtol=1e-5)


Pose = collections.namedtuple("Pose", "x")
State = collections.namedtuple("State", "obs reward done info pipeline_state")  # what PPO reads of Brax's


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
    config = ppo.Config(steps=16 * 16 * 40, devices=2, **recipe)
    agent = ppo.PPO(config, Target())

    def train(key):
        state = agent.init(key, agent.reset(key))
        state, metrics = lax.scan(lambda state, _: agent.learn(state, *agent.act(state, 1.0)), state, length=40)
        return state.iteration, metrics, agent.act(state, 0.0)[1].action

    out_specs = P(), P(), P(None, "devices")
    iteration, metrics, action = on_devices(2, train, P(), out_specs)(jax.random.PRNGKey(0))
    np.testing.assert_allclose(action, 0.5, atol=0.1)  # without noise
    assert metrics["value_loss"][-1] < metrics["value_loss"][0]
    assert int(iteration) == config.iterations == 40
    assert metrics["episodes"][:3].tolist() == [16 * 5, 16 * 6, 16 * 5]  # over all environments


def test_an_epoch_averages_over_the_rows_of_all_devices():
    agent = ppo.PPO(ppo.Config(num_envs=4, num_steps=5, minibatches=2, epochs=1, devices=2), Target())
    agent.loss = lambda params, row, advantage, target: (jnp.zeros(()), {"row": row.action})
    agent.optimizer = optax.set_to_zero()

    def learn(key):
        state = agent.init(key, agent.reset(key))
        env, rollout = agent.act(state, 1.0)
        return agent.learn(state, env, rollout)[1]["row"], rollout.action

    mean, actions = on_devices(2, learn, P(), (P(), P(None, "devices")))(jax.random.PRNGKey(0))
    assert len(np.unique(actions)) == 20  # no two environments draw the same noise
    np.testing.assert_allclose(mean, actions.mean(), rtol=1e-5)


def test_counts_the_bytes_of_collectives_in_nested_loops():
    def fn(x):
        def inner(x, _):
            x, total = lax.psum((x, x.sum()), "devices")
            return x, total

        x, totals = lax.scan(lambda x, _: lax.scan(inner, x, length=3), x, length=5)
        return x, lax.pmean(totals.astype(jnp.int32), "devices")

    program = on_devices(2, fn, P(), P()).lower(jnp.ones((4, 2))).compile()
    size = 5 * 3 * (8 + 1) * 4 + 5 * 3 * 4
    assert processes.communication(program) == f"an iteration exchanges {size} bytes per device, in 16 collectives"


RUN = ["--env", "fast", "--steps", "12800", "--num-envs", "8", "--num-steps", "16", "--episode-length", "64"]
RUN += ["--minibatches", "2", "--epochs", "2", "--devices", "2"]


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs the script in this process; returns what it printed, and that is nothing on standard error."""
    before = signal.getsignal(signal.SIGINT)

    def main(*options):
        # JAX has made the devices of all tests, and cannot connect any more.
        monkeypatch.setattr(processes, "with_devices", lambda config, cluster: config)
        monkeypatch.setattr(sys, "argv", ["ppo.py", *map(str, options), "--processes", "1"])
        trainer.main("", ppo.Config, ppo.PPO)
        printed, complaints = capfd.readouterr()
        assert not complaints  # of Brax, MuJoCo, JAXopt and Orbax there are many, and none is the user's business
        return printed

    yield main
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def start():
    """Starts the script in processes of its own, which end with the test. PYTHON runs first in each of them."""
    started = []

    def launch(*options, python="processes.TIME_LIMIT = 200", **variables):
        like_this_one = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": FOLDERS}
        code = f"import ppo, processes, trainer; {python}\ntrainer.main('', ppo.Config, ppo.PPO)"
        command = [sys.executable, "-c", code, *map(str, options)]
        where = {"env": os.environ | like_this_one | variables, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, text=True, **where))
        return started[-1]

    yield launch
    for process in started:
        process.kill()
        process.communicate()


def free_address():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


def start_two(start, *options, second=(), **how):
    shared = [*options, "--processes", 2, "--coordinator", free_address(), "--process"]
    return start(*shared, 0, **how), start(*shared, 1, *second, **how)


def status_and_complaint(process):
    _, complaint = process.communicate(timeout=SECONDS)
    return process.returncode, complaint


def steps_in(directory):
    """The numbers of the checkpoints. Orbax renames a checkpoint when it is whole."""
    return [int(path.name) for path in (directory / "checkpoints").glob("*") if path.name.isdigit()]


def wait_for_checkpoint(directory, after, *writers):
    while not any(step > after for step in steps_in(directory)):
        assert all(process.poll() is None for process in writers)
        time.sleep(0.002)


def state_in(directory):
    (step,) = steps_in(directory)
    path = (directory / "checkpoints" / str(step) / "state").absolute()
    with ocp.PyTreeCheckpointer() as reader:
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(path).item_metadata.tree)
        leaves = jax.tree.leaves_with_path(reader.restore(path, restore_args=how))
    return {jax.tree_util.keystr(name): x.tobytes() for name, x in leaves}


@pytest.fixture
def whole(run, tmp_path):
    """The directory of a run in one process that was not interrupted."""
    printed = run(*RUN, "--out", tmp_path / "whole")
    assert f"written to {tmp_path / 'whole'}: checkpoints, config.json, learning_curve.png, metrics.csv\n" in printed
    return tmp_path / "whole"


def test_two_killed_processes_resume_to_the_state_of_one_process(start, whole, tmp_path):
    split = tmp_path / "split"
    resume = ["--resume", "--env", "fast", "--out", split]
    two = start_two(start, *RUN, "--out", split)
    wait_for_checkpoint(split, 0, *two)
    two[1].kill()
    begin = time.monotonic()
    status, complaint = status_and_complaint(two[0])
    assert time.monotonic() - begin < 60
    assert status in (1, 2, -signal.SIGABRT)
    assert re.fullmatch(r"error: (another process ended|cannot save a checkpoint).*\n", complaint)

    first = max(steps_in(split))
    two = start_two(start, *resume)
    wait_for_checkpoint(split, first, *two)
    for process in two:
        process.kill()
        process.wait()
    assert first < max(steps_in(split)) < 100

    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2"}
    two = [start(*resume, SLURM_PROCID=i, SLURM_LOCALID=i, **slurm) for i in "01"]
    printed, complaints = zip(*[process.communicate(timeout=SECONDS) for process in two], strict=True)
    assert complaints == ("", "")
    assert f"written to {split}" in printed[0]
    reported = [line for line in printed[1].splitlines() if not line.startswith("[Gloo]")]
    assert reported == ["process 1 of 2 is connected; process 0 reports"]
    assert state_in(split) == state_in(whole)


def test_processes_with_other_options_are_refused(start, tmp_path):
    """Each process says why, also one that is a second later than the other."""
    later = "refuse = processes.refuse\nprocesses.refuse = lambda why: (time.sleep(jax.process_index()), refuse(why))"
    how = {"second": ("--gamma", "0.5"), "python": f"import jax, time\n{later}"}
    for process in start_two(start, *RUN, "--out", tmp_path, **how):
        assert status_and_complaint(process) == (2, "error: --gamma: process 0 has 0.99, and process 1 has 0.5\n")


@pytest.mark.parametrize("process", [0, 1])
def test_waits_for_the_other_processes_for_a_limited_time(start, tmp_path, process):
    address = free_address()
    how = ["--processes", 2, "--process", process, "--coordinator", address]
    alone = start(*RUN, "--out", tmp_path, *how, python="processes.TIME_LIMIT = 3")
    complaint = f"error: the processes have not all connected to {address} within 3 seconds\n"
    assert status_and_complaint(alone) == (2, complaint)


def test_ctrl_c_writes_everything_and_the_run_resumes_to_the_same_state(run, whole, monkeypatch, tmp_path):
    report, early, compared = trainer.report, tmp_path / "early", []

    def report_and_interrupt(config, done, *arguments):
        if done == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return report(config, done, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "report", report_and_interrupt)
        patched.setattr(processes, "refuse_other_options", compared.append)
        assert re.search(r"^to go on: .* --resume$", run(*RUN, "--out", early), re.MULTILINE)
    assert compared[0].keys() == {*dataclasses.asdict(ppo.Config()), "resume", "overwrite", "play"}
    assert steps_in(early) == [20]
    assert len((early / "metrics.csv").read_text().splitlines()) == 1 + 20
    printed = run("--resume", "--env", "fast", "--out", early)
    assert state_in(early) == state_in(whole)
    assert len((early / "metrics.csv").read_text().splitlines()) == 1 + 100
    (after,) = re.findall(r"^after training: return .*$", printed, re.MULTILINE)
    assert run("--play", whole).splitlines()[-2:] == [after, "drawing"]
