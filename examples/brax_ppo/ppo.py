"""Proximal Policy Optimization (PPO) on a Brax robot, in one file; `gae_jax.gae` estimates the advantages.

    python examples/brax_ppo/ppo.py                        # trains the ant to run
    python examples/brax_ppo/ppo.py --play runs/ant-seed0  # evaluates the trained policy and draws an episode
    python examples/brax_ppo/ppo.py --env reacher --backend mjx --episode-length 100 --reward-scale 1 --gamma 0.95

Schulman et al., 2017, "Proximal Policy Optimization Algorithms", arXiv:1707.06347. An iteration is two compiled
programs: `act` takes a few steps in all environments, and `learn` estimates the advantages of this rollout and updates
the networks in a few epochs of minibatches. The evaluation is `act` without noise. This file holds the algorithm.
trainer.py compiles it, reports progress, saves checkpoints and writes results; processes.py connects several machines.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import environment
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import trainer
from jax import Array, lax
from jax.scipy.stats import norm
from options import Count, Devices, Fraction, Positive, Seed, Steps

from gae_jax import gae, normalize


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the result of a run. Each field is an option of the command line."""

    env: environment.Environment = "ant"  # environment
    backend: environment.Backend = "spring"  # physics
    seed: Seed = 0  # of all random numbers
    num_envs: Count = 64  # environments that run side by side
    steps: Steps = 1_048_576  # environment steps of the run, over all environments; rounded up to whole iterations
    num_steps: Count = 64  # steps of each environment in one iteration
    episode_length: Count = 1000  # time limit of an episode, in steps
    gamma: Fraction = 0.99  # discount factor γ
    gae_lambda: Fraction = 0.95  # λ of the advantage estimator
    clip: Positive = 0.2  # bound ε on the change of the probability ratio
    epochs: Count = 4  # passes over the rollout of an iteration
    minibatches: Count = 8  # gradient steps of one epoch; must divide num-envs × num-steps / devices
    learning_rate: Positive = 1e-3  # of Adam; falls linearly to 5% of this
    value_weight: Positive = 0.5  # weight of the value loss
    max_grad_norm: Positive = 0.5  # bound on the norm of a gradient
    reward_scale: Positive = 0.1  # factor on the rewards in training, not in reports
    devices: Devices = 0  # in all; must divide num-envs; changes the result; 0: all, or one per CPU core up to 8

    @property
    def iterations(self) -> int:
        """Iterations of the run."""
        return math.ceil(self.steps / (self.num_envs * self.num_steps))


class ActorCritic(nn.Module):
    """From observations to the mean and log standard deviation of actions, and to V(s)."""

    action_size: int

    @nn.compact
    def __call__(self, obs: Array) -> tuple[Array, Array, Array]:
        """Applies the networks of the policy and of the value, which share no layer."""
        policy = value = obs
        for size in (64, 64):
            policy, value = nn.tanh(nn.Dense(size)(policy)), nn.tanh(nn.Dense(size)(value))
        small = nn.initializers.variance_scaling(0.01**2, "fan_in", "truncated_normal")
        mean = nn.Dense(self.action_size, kernel_init=small)(policy)  # close to 0 before training
        log_std = self.param("log_std", nn.initializers.constant(-0.5), (self.action_size,))
        return mean, log_std, nn.Dense(1)(value)[..., 0]


class Statistics(NamedTuple):
    """Running mean and variance of the observations."""

    number: Array
    mean: Array
    variance: Array

    def normalize(self, obs: Array) -> Array:
        """Scales observations to mean 0 and variance 1, and clips them to [-10, 10]."""
        return jnp.clip((obs - self.mean) * lax.rsqrt(self.variance + 1e-6), -10, 10)

    def update(self, obs: Array) -> "Statistics":
        """Adds the observations of a rollout, `[T, N, ...]` on each device."""
        number = self.number + lax.psum(math.prod(obs.shape[:-1]), "devices")
        weight = 1 - self.number / number
        shifts = obs - self.mean
        shift, square = lax.pmean((shifts.mean((0, 1)), jnp.square(shifts).mean((0, 1))), "devices")
        variance = (1 - weight) * self.variance + weight * square - (weight * shift) ** 2
        return Statistics(number, self.mean + weight * shift, variance)


class TrainState(NamedTuple):
    """The state of a run. A checkpoint holds exactly this."""

    params: Any
    optimizer: Any
    statistics: Statistics
    env: Any
    key: Array
    iteration: Array


class Transition(NamedTuple):
    """One step of all environments, `[N, ...]`; with a leading time axis, a rollout."""

    obs: Array
    action: Array
    log_prob: Array
    value: Array
    reward: Array
    done: Array
    truncated: Array
    final_obs: Array  # the observation after the step, also where the next row belongs to another episode
    episode_return: Array  # so far
    pose: Any  # where the robot's links were, for the replay


class PPO:
    """Proximal Policy Optimization as pure functions of a `TrainState`, to be called in `jax.shard_map`.

    The axis "devices" splits the environments. Each device draws minibatches from the rollout of its own environments
    and standardizes their advantages; the gradients are averaged over the devices.
    """

    state_type = TrainState

    def __init__(self, config: Config, env: Any) -> None:
        """Takes a batch of environments from `environment.make`."""
        self.config, self.env = config, env
        self.networks: Any = ActorCritic(env.action_size)
        updates = float(config.iterations * config.epochs * config.minibatches)
        adam = optax.adam(lambda update: config.learning_rate * (1 - 0.95 * update / updates))
        self.optimizer = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adam)

    def reset(self, key: Array) -> Any:
        """Begins an episode in every environment."""
        key = jax.random.fold_in(key, lax.axis_index("devices"))
        return self.env.reset(jax.random.split(key, self.config.num_envs // self.config.devices))

    def init(self, key: Array, env: Any) -> TrainState:
        """Returns the state before training."""
        key, network_key = jax.random.split(key)
        params = self.networks.init(network_key, env.obs)
        statistics = Statistics(jnp.zeros(()), jnp.zeros(env.obs.shape[-1:]), jnp.ones(env.obs.shape[-1:]))
        return TrainState(params, self.optimizer.init(params), statistics, env, key, jnp.zeros((), jnp.int32))

    def act(self, state: TrainState, noise: Array) -> tuple[Any, Transition]:
        """Takes `num_steps` steps in every environment. Training has noise 1, and the evaluation 0."""

        def step(env: Any, key: Array) -> tuple[Any, Transition]:
            mean, log_std, value = self.networks.apply(state.params, state.statistics.normalize(env.obs))
            action = mean + noise * jnp.exp(log_std) * jax.random.normal(key, mean.shape)
            after = self.env.step(env, action)
            log_prob, truncated = log_density(action, mean, log_std), after.info["truncation"]
            final_obs, returns = after.info["final_obs"], after.info["episode_metrics"]["sum_reward"]
            outcome = after.reward, after.done, truncated, final_obs, returns, env.pipeline_state.x
            return after, Transition(env.obs, action, log_prob, value, *outcome)

        return lax.scan(step, state.env, jax.random.split(self.keys(state)[0], self.config.num_steps))

    def keys(self, state: TrainState) -> Array:
        """Returns two keys, for acting and for learning, in each iteration and on each device others."""
        key = jax.random.fold_in(state.key, state.iteration)
        return jax.random.split(jax.random.fold_in(key, lax.axis_index("devices")))

    def learn(self, state: TrainState, env: Any, rollout: Transition) -> tuple[TrainState, dict[str, Array]]:
        """Estimates the advantages of the rollout, which ended in `env`, then takes epochs of gradient steps."""

        def value(obs: Array) -> Array:
            return self.networks.apply(state.params, state.statistics.normalize(obs))[2]

        advantages, targets = gae(
            self.config.reward_scale * rollout.reward,
            rollout.value,
            terminated=rollout.done * (1 - rollout.truncated),
            truncated=rollout.truncated,
            gamma=self.config.gamma,
            lambda_=self.config.gae_lambda,
            bootstrap_value=value(env.obs),
            final_values=value(rollout.final_obs),
        )
        data = rollout._replace(obs=state.statistics.normalize(rollout.obs)), advantages, targets
        data = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data)  # [T, N, ...] to [rows, ...]

        def update(carry: Any, rows: Array) -> tuple[Any, dict[str, Array]]:
            params, optimizer = carry
            both = jax.grad(self.loss, has_aux=True)(params, *jax.tree.map(lambda x: x[rows], data))
            gradient, metrics = lax.pmean(both, "devices")
            change, optimizer = self.optimizer.update(gradient, optimizer)
            return (optax.apply_updates(params, change), optimizer), metrics

        def epoch(carry: Any, key: Array) -> tuple[Any, dict[str, Array]]:
            rows = jax.random.permutation(key, len(targets.ravel()))
            return lax.scan(update, carry, rows.reshape(self.config.minibatches, -1))

        keys = jax.random.split(self.keys(state)[1], self.config.epochs)
        (params, optimizer), metrics = lax.scan(epoch, (state.params, state.optimizer), keys)
        finished = {"episodes": rollout.done.sum(), "returns": (rollout.done * rollout.episode_return).sum()}
        # Acting and learning used the old statistics, so the probability ratio started at exactly 1.
        statistics = state.statistics.update(rollout.obs)
        state = TrainState(params, optimizer, statistics, env, state.key, state.iteration + 1)
        return state, jax.tree.map(jnp.mean, metrics) | lax.psum(finished, "devices")

    def loss(self, params: Any, row: Transition, advantage: Array, target: Array) -> tuple[Array, dict[str, Array]]:
        """The clipped surrogate objective plus the squared error of the values, over a minibatch."""
        mean, log_std, value = self.networks.apply(params, row.obs)
        ratio = jnp.exp(log_density(row.action, mean, log_std) - row.log_prob)
        clipped = jnp.clip(ratio, 1 - self.config.clip, 1 + self.config.clip)
        advantage = normalize(advantage)
        policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage).mean()
        value_loss = jnp.square(value - target).mean()
        total = policy_loss + self.config.value_weight * value_loss
        return total, {"policy_loss": policy_loss, "value_loss": value_loss}


def log_density(action: Array, mean: Array, log_std: Array) -> Array:
    """The logarithm of the policy's probability density."""
    return norm.logpdf(action, mean, jnp.exp(log_std)).sum(axis=-1)


if __name__ == "__main__":
    trainer.main(__doc__ or "", Config, PPO)
