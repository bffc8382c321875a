"""Proximal Policy Optimization on a Brax robot, in one file; `gae_jax.gae` estimates the advantages.

    python examples/brax_ppo.py                        # teaches the ant to run: two minutes on two CPU cores
    python examples/brax_ppo.py --env reacher --backend mjx --episode-length 100 --reward-scale 1 --gamma 0.95
    python examples/brax_ppo.py --devices 8            # the environments split over the devices of a mesh
    python examples/brax_ppo.py --help

Schulman et al., 2017, "Proximal Policy Optimization Algorithms", arXiv:1707.06347. An iteration, compiled as a whole,
lets a batch of robots act, estimates advantages and takes a few epochs of gradient steps on minibatches. Where the
environment variable JAX_COMPILATION_CACHE_DIR names a directory, JAX keeps what it compiled for the next run.
"""

import concurrent.futures
import contextlib
import dataclasses
import io
import json
import math
import pathlib
import shlex
import signal
import sys
import time
import warnings
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import replay
import runs
import tyro
from jax import Array, lax
from jax.scipy.stats import norm
from jax.sharding import NamedSharding, PartitionSpec

from gae_jax import gae, normalize

BACKENDS = ("spring", "generalized", "positional", "mjx")
ENVIRONMENTS = (  # all of Brax's but swimmer, which a current JAX cannot run
    *("ant", "fast", "halfcheetah", "hopper", "humanoid", "humanoidstandup"),
    *("inverted_double_pendulum", "inverted_pendulum", "pusher", "reacher", "walker2d"),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a PPO agent on a Brax environment and draws what it learned."""

    env: Annotated[str, tyro.conf.arg(help=f"the environment: {', '.join(ENVIRONMENTS)}")] = "ant"
    backend: Annotated[str, tyro.conf.arg(help=f"the physics: {', '.join(BACKENDS)}")] = "spring"
    seed: int = 0  # of everything random
    num_envs: int = 64  # environments that run side by side
    steps: int = 1_048_576  # environment steps to train for, over all environments; rounded up to whole chunks
    out: pathlib.Path | None = None  # directory for the results; by default runs/ENV-seedSEED
    resume: bool = False  # go on from the checkpoint in --out; needs the options of the run that wrote it
    num_steps: int = 64  # steps that each environment takes per iteration
    episode_length: int = 1000  # time limit of an episode, in steps
    eval_envs: int = 16  # episodes per evaluation
    gamma: float = 0.99  # discount per step
    gae_lambda: Annotated[float, tyro.conf.arg(name="lambda")] = 0.95  # λ of the advantage estimator
    clip: float = 0.2  # how far the probability ratio may move before its gradient stops
    epochs: int = 4  # passes over the data of an iteration
    minibatches: int = 8  # gradient steps per epoch; must divide --num-envs
    learning_rate: float = 1e-3  # Adam's, annealed linearly to 5% of this
    value_weight: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # longer gradients are scaled down to this norm
    reward_scale: float = 0.1  # rewards are multiplied by this for learning; reports are unscaled
    devices: int = 1  # to split the environments over, of all processes together; of CPUs, as many as you like
    processes: int = 1  # that share the devices, each started with the same options, but for --process
    process: int = 0  # which of them this is
    coordinator: str = "127.0.0.1:12345"  # where process 0 listens to the others

    @property
    def directory(self) -> pathlib.Path:
        """Where the results go."""
        return self.out or pathlib.Path("runs") / f"{self.env}-seed{self.seed}"

    @property
    def chunk(self) -> int:
        """Iterations between reports: about 1% of all."""
        return max(1, self.steps // (100 * self.num_envs * self.num_steps))

    @property
    def iterations(self) -> int:
        """How often to act and learn: whole chunks, as a shorter one would have to be compiled as well."""
        return self.chunk * math.ceil(self.steps / (self.chunk * self.num_envs * self.num_steps))

    @property
    def recipe(self) -> dict[str, Any]:
        """The options that decide the result: to go on with a run, they must be those that it began with."""
        where = ("out", "resume", "processes", "process", "coordinator")
        return {name: x for name, x in dataclasses.asdict(self).items() if name not in where}


def make_env(config: Config) -> Any:
    """Builds the batch of environments, and keeps back what Brax and MuJoCo print about their own upkeep."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "JAXopt is no longer maintained", DeprecationWarning)
        warnings.filterwarnings("ignore", "Brax System, piplines and environments are not", UserWarning)
        import mujoco  # here, not above: these take seconds, too long for somebody who only mistyped an option
        from brax import envs
        from brax.envs.wrappers import training

        warn = vars(mujoco)["set_mju_user_warning"]  # its type stubs lack it
        warn(lambda text: None if "settotalmass" in text else print(text, file=sys.stderr))
        env = envs.get_environment(config.env, backend=config.backend)

    class KeepFinalObservation(envs.Wrapper):
        """Keeps the observation that an episode ends with: AutoResetWrapper puts that of the next in its place."""

        def reset(self, rng: Array) -> Any:
            return self.keep(self.env.reset(rng))

        def step(self, state: Any, action: Array) -> Any:
            return self.keep(self.env.step(state, action))

        def keep(self, state: Any) -> Any:
            return state.replace(info=state.info | {"final_obs": state.obs})

    env = training.EpisodeWrapper(training.VmapWrapper(env), config.episode_length, action_repeat=1)
    return training.AutoResetWrapper(KeepFinalObservation(env))


class ActorCritic(nn.Module):
    """Policy and value network; maps observations to the mean and log deviation of actions, and to V(s)."""

    action_size: int

    @nn.compact
    def __call__(self, obs: Array) -> tuple[Array, Array, Array]:
        """Applies both networks, which share nothing."""
        policy = value = obs
        for size in (64, 64):
            policy, value = nn.tanh(nn.Dense(size)(policy)), nn.tanh(nn.Dense(size)(value))
        small = nn.initializers.variance_scaling(0.01**2, "fan_in", "truncated_normal")
        mean = nn.Dense(self.action_size, kernel_init=small)(policy)  # the first actions are noise around 0
        log_std = self.param("log_std", nn.initializers.constant(-0.5), (self.action_size,))
        return mean, log_std, nn.Dense(1)(value)[..., 0]


class Statistics(NamedTuple):
    """Running mean and variance of the observations."""

    number: Array
    mean: Array
    variance: Array

    def normalize(self, obs: Array) -> Array:
        """Brings observations to mean 0 and variance 1, and outliers within 10."""
        return jnp.clip((obs - self.mean) * lax.rsqrt(self.variance + 1e-6), -10, 10)

    def update(self, obs: Array) -> "Statistics":
        """Takes a rollout's observations into account."""
        number = self.number + math.prod(obs.shape[:-1])
        weight = 1 - self.number / number
        shift = obs.mean(axis=(0, 1)) - self.mean
        variance = (1 - weight) * self.variance + weight * obs.var(axis=(0, 1)) + weight * (1 - weight) * shift**2
        return Statistics(number, self.mean + weight * shift, variance)


class TrainState(NamedTuple):
    """All that a run is, and so all that a checkpoint has to hold."""

    params: Any
    optimizer: optax.OptState
    statistics: Statistics
    env: Any
    key: Array
    iteration: Array


class Transition(NamedTuple):
    """A step of every environment; with a leading axis of time, a rollout."""

    obs: Array
    action: Array
    log_prob: Array
    value: Array
    reward: Array
    done: Array
    truncated: Array
    final_obs: Array  # what the step led to, even where the next row begins another episode
    episode_return: Array  # so far


class PPO:
    """Proximal Policy Optimization as pure functions of a `TrainState`, to be compiled whole."""

    def __init__(self, config: Config, env: Any) -> None:
        """Takes a batch of environments from `make_env`."""
        self.config, self.env, self.networks = config, env, ActorCritic(env.action_size)
        updates = config.iterations * config.epochs * config.minibatches
        learning_rate = optax.linear_schedule(config.learning_rate, 0.05 * config.learning_rate, updates)
        self.optimizer = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adam(learning_rate))

    def init(self, key: Array) -> TrainState:
        """Returns the state that training starts from."""
        key, env_key, network_key = jax.random.split(key, 3)
        env = self.env.reset(jax.random.split(env_key, self.config.num_envs))
        params = self.networks.init(network_key, env.obs)
        statistics = Statistics(jnp.zeros(()), jnp.zeros(env.obs.shape[-1]), jnp.ones(env.obs.shape[-1]))
        return TrainState(params, self.optimizer.init(params), statistics, env, key, jnp.zeros((), jnp.int32))

    def apply(self, params: Any, obs: Array) -> tuple[Array, Array, Array]:
        """Returns the mean and log deviation of actions, and V(s) in units of scaled reward."""
        outputs: Any = self.networks.apply(params, obs)
        return outputs

    def train(self, state: TrainState) -> tuple[TrainState, dict[str, Array]]:
        """Runs a chunk of iterations."""
        return lax.scan(self.iterate, state, length=self.config.chunk)

    def iterate(self, state: TrainState, _: None) -> tuple[TrainState, dict[str, Array]]:
        """Acts, then learns, with the statistics known before: so the probability ratio starts at exactly 1."""
        key, act_key, learn_key = jax.random.split(state.key, 3)
        env, rollout = self.act(state, act_key)
        params, optimizer, metrics = self.learn(state, rollout, env.obs, learn_key)
        metrics |= {"episodes": rollout.done.sum(), "returns": (rollout.done * rollout.episode_return).sum()}
        statistics = state.statistics.update(rollout.obs)
        return TrainState(params, optimizer, statistics, env, key, state.iteration + 1), metrics

    def act(self, state: TrainState, key: Array) -> tuple[Any, Transition]:
        """Lets every environment take `num_steps` steps."""

        def step(env: Any, key: Array) -> tuple[Any, Transition]:
            mean, log_std, value = self.apply(state.params, state.statistics.normalize(env.obs))
            action = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
            after = self.env.step(env, action)
            return after, Transition(
                obs=env.obs,
                action=action,
                log_prob=log_density(action, mean, log_std),
                value=value,
                reward=after.reward,
                done=after.done,
                truncated=after.info["truncation"],
                final_obs=after.info["final_obs"],
                episode_return=after.info["episode_metrics"]["sum_reward"],
            )

        return lax.scan(step, state.env, jax.random.split(key, self.config.num_steps))

    def learn(
        self, state: TrainState, rollout: Transition, next_obs: Array, key: Array
    ) -> tuple[Any, optax.OptState, dict[str, Array]]:
        """Estimates advantages, then takes a few epochs of gradient steps on shuffled minibatches."""
        standard = state.statistics.normalize
        advantages, targets = gae(
            self.config.reward_scale * rollout.reward,
            rollout.value,
            terminated=rollout.done * (1 - rollout.truncated),
            truncated=rollout.truncated,
            gamma=self.config.gamma,
            lambda_=self.config.gae_lambda,
            bootstrap_value=self.apply(state.params, standard(next_obs))[2],
            final_values=self.apply(state.params, standard(rollout.final_obs))[2],
        )
        # Data to the loss: no gradient has to be stopped.
        data = rollout._replace(obs=standard(rollout.obs)), advantages, targets
        devices, own_rows = self.config.devices, self.config.num_envs * self.config.num_steps // self.config.devices

        def rows_by_device(x: Array) -> Array:
            """From `[T, N, ...]` to `[devices, T N / devices, ...]`: so none needs the rows of another."""
            x = x.reshape(x.shape[0], devices, -1, *x.shape[2:])
            return jnp.moveaxis(x, 1, 0).reshape(devices, own_rows, *x.shape[3:])

        data = jax.tree.map(rows_by_device, data)

        def update(carry: Any, rows: Array) -> tuple[Any, dict[str, Array]]:
            params, optimizer = carry
            gradient, metrics = jax.grad(self.loss, has_aux=True)(params, *jax.tree.map(lambda x: x[:, rows], data))
            change, optimizer = self.optimizer.update(gradient, optimizer)
            return (optax.apply_updates(params, change), optimizer), metrics

        def epoch(carry: Any, key: Array) -> tuple[Any, dict[str, Array]]:
            rows = jax.random.permutation(key, own_rows)
            return lax.scan(update, carry, rows.reshape(self.config.minibatches, -1))

        carry = state.params, state.optimizer
        (params, optimizer), metrics = lax.scan(epoch, carry, jax.random.split(key, self.config.epochs))
        return params, optimizer, jax.tree.map(jnp.mean, metrics)

    def loss(self, params: Any, row: Transition, advantage: Array, target: Array) -> tuple[Array, dict[str, Array]]:
        """The clipped surrogate objective plus the squared error of the values, over a minibatch."""
        mean, log_std, value = self.apply(params, row.obs)
        ratio = jnp.exp(log_density(row.action, mean, log_std) - row.log_prob)
        clipped = jnp.clip(ratio, 1 - self.config.clip, 1 + self.config.clip)
        advantage = normalize(advantage)
        policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage).mean()
        value_loss = jnp.square(value - target).mean()
        metrics = {"policy_loss": policy_loss, "value_loss": value_loss}
        return policy_loss + self.config.value_weight * value_loss, metrics

    def evaluate(self, state: TrainState, key: Array) -> tuple[Array, tuple[Array, ...]]:
        """Plays one fresh episode per evaluation environment, without noise.

        Args:
          state: what was learned; the environments in it are left alone.
          key: decides how the episodes begin.

        Returns:
          The returns of all episodes, `[eval_envs]`, and a film of the first: over time the positions and rotations
          of its links, its return so far, and 1 until it ends.
        """

        def step(carry: Any, _: None) -> tuple[Any, tuple[Array, ...]]:
            env, running, returns = carry
            frame = env.pipeline_state.x.pos[0], env.pipeline_state.x.rot[0], returns[0], running[0]
            env = self.env.step(env, self.apply(state.params, state.statistics.normalize(env.obs))[0])
            return (env, running * (1 - env.done), returns + running * env.reward), frame

        env = self.env.reset(jax.random.split(key, self.config.eval_envs))
        carry = env, jnp.ones_like(env.done), jnp.zeros_like(env.reward)
        (_, _, returns), film = lax.scan(step, carry, length=self.config.episode_length)
        return returns, film


def log_density(action: Array, mean: Array, log_std: Array) -> Array:
    """The logarithm of the policy's probability density."""
    return norm.logpdf(action, mean, jnp.exp(log_std)).sum(axis=-1)


def main() -> None:
    """Evaluates, trains, evaluates again, and writes and draws what came of it."""
    config = tyro.cli(Config, config=(tyro.conf.FlagCreatePairsOff,))
    if problem := runs.fault(config, {"env": ENVIRONMENTS, "backend": BACKENDS}):
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # there is nothing to save yet: Ctrl-C quits
    mesh, say = runs.connect(config), runs.say
    directory, name = config.directory, f"{config.env} ({config.backend}), seed {config.seed}"

    say(f"{name}: compiling, which may take half a minute")
    start = time.perf_counter()
    env = make_env(config)
    ppo = PPO(config, env)
    key, eval_key = jax.random.split(jax.random.PRNGKey(config.seed))  # the old kind of key: Brax takes no other
    # The environments are split over the devices, and everything else is everywhere; what follows from it, gradients
    # averaged over all devices say, is left to the compiler.
    everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("devices"))
    shapes = jax.eval_shape(ppo.init, key)
    shardings = jax.tree.map(lambda _: everywhere, shapes)._replace(env=jax.tree.map(lambda _: split, shapes.env))
    state, rows = jax.jit(ppo.init, out_shardings=shardings)(key), np.zeros((0, len(runs.COLUMNS)))
    train = jax.jit(ppo.train, donate_argnums=0, out_shardings=(shardings, everywhere)).lower(state)
    evaluate = jax.jit(ppo.evaluate, out_shardings=everywhere).lower(state, eval_key)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        train, evaluate = pool.map(lambda stage: stage.compile(), (train, evaluate))
    say(f"compiled in {time.perf_counter() - start:.0f} s; evaluating the untrained policy")
    untrained = np.asarray(evaluate(state, eval_key)[0])
    say(f"before training: return {untrained.mean():,.1f} ± {untrained.std():,.1f} over {len(untrained)} episodes")

    if config.resume:
        stored = runs.load(directory / "checkpoint.npz", like={"state": state, "rows": rows})
        state, rows = jax.jit(lambda state: state, out_shardings=shardings)(stored["state"]), stored["rows"]
    say(f"training from iteration {int(state.iteration)} to {config.iterations}; Ctrl-C ends it early")
    state, rows = runs.run(config, train, state, rows)
    complete = int(state.iteration) == config.iterations
    say(f"{'trained' if complete else 'interrupted'}; evaluating the policy")
    trained, film = jax.device_get(evaluate(state, eval_key))
    say(f"after training: return {trained.mean():,.1f} ± {trained.std():,.1f} over {len(trained)} episodes")
    runs.save(directory / "policy.npz", config, {"params": state.params, "statistics": state.statistics})
    if jax.process_index() != 0:
        return

    say("drawing")
    files = ["learning_curve.png", "metrics.csv", "policy.npz", "config.json", "checkpoint.npz"]
    replay.draw_curve(directory / "learning_curve.png", f"PPO on {name}", rows, untrained.mean(), trained.mean())
    np.savetxt(directory / "metrics.csv", rows, fmt="%.9g", delimiter=",", header=",".join(runs.COLUMNS), comments="")
    (directory / "config.json").write_text(json.dumps(config.recipe, indent=2) + "\n")
    robot = env.unwrapped
    if hasattr(robot, "sys"):
        episode = replay.Episode(robot.sys, float(robot.dt), *(x[: int(film[-1].sum())] for x in film[:-1]))
        replay.draw_episode(directory / "replay.gif", name, episode)
        replay.write_page(directory / "replay.html", episode)
        files += ["replay.gif", "replay.html (all of the episode in Brax's own viewer, which needs a network)"]
    else:
        say(f"no replay: {config.env} has no body that could be drawn")
    say("written:", *(f"  {directory / file}" for file in files), sep="\n")
    if not complete:
        say(f"to go on: {shlex.join([sys.executable, *sys.argv, *([] if config.resume else ['--resume'])])}")


if __name__ == "__main__":
    main()
