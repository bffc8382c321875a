"""Proximal Policy Optimization (PPO) on a Brax robot, in one file; `gae_jax.gae` estimates the advantages.

    python examples/brax_ppo.py                        # trains the ant to run: two minutes on two CPU cores
    python examples/brax_ppo.py --play runs/ant-seed0  # evaluates the trained policy and draws an episode
    python examples/brax_ppo.py --env reacher --backend mjx --episode-length 100 --reward-scale 1 --gamma 0.95
    python examples/brax_ppo.py --help

Schulman et al., 2017, "Proximal Policy Optimization Algorithms", arXiv:1707.06347. One iteration is one compiled
program: all environments act for a few steps, the advantages of the rollout are estimated, and a few epochs of
minibatches update the networks. This file holds the algorithm. runs.py compiles the algorithm, reports progress, saves
checkpoints and writes the results; brax_env.py makes the environments.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import runs
from brax_env import BACKENDS, ENVIRONMENTS
from command_line import fraction, one_of, positive, seed_number
from jax import Array, lax
from jax.scipy.stats import norm
from run_options import option

from gae_jax import gae, normalize


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the result of a run. Each field is an option of the command line."""

    env: str = option("ant", f"environment: {', '.join(ENVIRONMENTS)}", one_of(ENVIRONMENTS))
    backend: str = option("spring", f"physics: {', '.join(BACKENDS)}", one_of(BACKENDS))
    seed: int = option(0, "of all random numbers", seed_number)
    num_envs: int = option(64, "environments that run side by side")
    steps: int = option(1_048_576, "environment steps of the run, over all environments; rounded up to whole reports")
    num_steps: int = option(64, "steps of each environment in one iteration")
    episode_length: int = option(1000, "time limit of an episode, in steps")
    eval_envs: int = option(16, "episodes of one evaluation")
    gamma: float = option(0.99, "discount factor γ", fraction)
    gae_lambda: float = option(0.95, "λ of the advantage estimator", fraction)
    clip: float = option(0.2, "bound ε on the change of the probability ratio", positive)
    epochs: int = option(4, "passes over the rollout of an iteration")
    minibatches: int = option(8, "gradient steps of one epoch; must divide num_envs × num_steps / devices")
    learning_rate: float = option(1e-3, "of Adam; falls linearly to 5%% of this", positive)
    value_weight: float = option(0.5, "weight of the value loss", positive)
    max_grad_norm: float = option(0.5, "bound on the norm of a gradient", positive)
    reward_scale: float = option(0.1, "factor on the rewards in training, not in reports", positive)
    devices: int = option(1, "devices of all processes together; must divide num_envs")


def make_networks(action_size: int) -> Any:
    """Returns the networks: from observations to the mean and log standard deviation of actions, and to V(s)."""
    import flax.linen as nn  # here, not above: `--help` needs no extra, and a wrong option is refused at once

    class ActorCritic(nn.Module):
        @nn.compact
        def __call__(self, obs: Array) -> tuple[Array, Array, Array]:
            policy = value = obs
            for size in (64, 64):  # the policy and the value share no layer
                policy, value = nn.tanh(nn.Dense(size)(policy)), nn.tanh(nn.Dense(size)(value))
            small = nn.initializers.variance_scaling(0.01**2, "fan_in", "truncated_normal")
            mean = nn.Dense(action_size, kernel_init=small)(policy)  # close to 0 before training
            log_std = self.param("log_std", nn.initializers.constant(-0.5), (action_size,))
            return mean, log_std, nn.Dense(1)(value)[..., 0]

    return ActorCritic()


def make_optimizer(config: Config) -> Any:
    """Returns Adam on clipped gradients, with a learning rate that falls over the gradient steps of the run."""
    import optax

    updates = runs.iterations(config) * config.epochs * config.minibatches
    learning_rate = optax.linear_schedule(config.learning_rate, 0.05 * config.learning_rate, updates)
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adam(learning_rate))


class Statistics(NamedTuple):
    """Running mean and variance of the observations."""

    number: Array
    mean: Array
    variance: Array

    def normalize(self, obs: Array) -> Array:
        """Scales observations to mean 0 and variance 1, and clips them to [-10, 10]."""
        return jnp.clip((obs - self.mean) * lax.rsqrt(self.variance + 1e-6), -10, 10)

    def update(self, obs: Array) -> "Statistics":
        """Adds the observations of a rollout, `[T, N, ...]`."""
        number = self.number + math.prod(obs.shape[:-1])
        weight = 1 - self.number / number
        shift = obs.mean(axis=(0, 1)) - self.mean
        variance = (1 - weight) * self.variance + weight * obs.var(axis=(0, 1)) + weight * (1 - weight) * shift**2
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


class PPO:
    """Proximal Policy Optimization as pure functions of a `TrainState`."""

    def __init__(self, config: Config, env: Any) -> None:
        """Takes a batch of environments from `brax_env.make`."""
        self.config, self.env = config, env
        self.networks, self.optimizer = make_networks(env.action_size), make_optimizer(config)

    def init(self, key: Array) -> TrainState:
        """Returns the state before training."""
        key, env_key, network_key = jax.random.split(key, 3)
        env = self.env.reset(jax.random.split(env_key, self.config.num_envs))
        params = self.networks.init(network_key, env.obs)
        statistics = Statistics(jnp.zeros(()), jnp.zeros(env.obs.shape[-1]), jnp.ones(env.obs.shape[-1]))
        return TrainState(params, self.optimizer.init(params), statistics, env, key, jnp.zeros((), jnp.int32))

    def iterate(self, state: TrainState, _: None) -> tuple[TrainState, dict[str, Array]]:
        """Acts, then learns. Both use the old statistics, so the probability ratio starts at exactly 1."""
        key, act_key, learn_key = jax.random.split(state.key, 3)
        env, rollout = self.act(state, act_key)
        params, optimizer, metrics = self.learn(state, rollout, env.obs, learn_key)
        metrics |= {"episodes": rollout.done.sum(), "returns": (rollout.done * rollout.episode_return).sum()}
        statistics = state.statistics.update(rollout.obs)
        return TrainState(params, optimizer, statistics, env, key, state.iteration + 1), metrics

    def act(self, state: TrainState, key: Array) -> tuple[Any, Transition]:
        """Takes `num_steps` steps in every environment."""

        def step(env: Any, key: Array) -> tuple[Any, Transition]:
            mean, log_std, value = self.networks.apply(state.params, state.statistics.normalize(env.obs))
            action = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
            after = self.env.step(env, action)
            log_prob, truncated = log_density(action, mean, log_std), after.info["truncation"]
            final_obs, returns = after.info["final_obs"], after.info["episode_metrics"]["sum_reward"]
            return after, Transition(
                env.obs, action, log_prob, value, after.reward, after.done, truncated, final_obs, returns
            )

        return lax.scan(step, state.env, jax.random.split(key, self.config.num_steps))

    def learn(
        self, state: TrainState, rollout: Transition, next_obs: Array, key: Array
    ) -> tuple[Any, Any, dict[str, Array]]:
        """Estimates advantages, then takes a few epochs of gradient steps on shuffled minibatches."""

        def value(obs: Array) -> Array:
            return self.networks.apply(state.params, state.statistics.normalize(obs))[2]

        advantages, targets = gae(
            self.config.reward_scale * rollout.reward,
            rollout.value,
            terminated=rollout.done * (1 - rollout.truncated),
            truncated=rollout.truncated,
            gamma=self.config.gamma,
            lambda_=self.config.gae_lambda,
            bootstrap_value=value(next_obs),
            final_values=value(rollout.final_obs),
        )
        data = rollout._replace(obs=state.statistics.normalize(rollout.obs)), advantages, targets
        devices, rows_each = self.config.devices, self.config.num_envs * self.config.num_steps // self.config.devices

        def by_device(x: Array) -> Array:
            """From `[T, N, ...]` to `[devices, rows_each, ...]`: each device draws minibatches from its own rows."""
            x = x.reshape(x.shape[0], devices, -1, *x.shape[2:])
            return jnp.moveaxis(x, 1, 0).reshape(devices, rows_each, *x.shape[3:])

        data = jax.tree.map(by_device, data)

        def update(carry: Any, rows: Array) -> tuple[Any, dict[str, Array]]:
            params, optimizer = carry
            gradient, metrics = jax.grad(self.loss, has_aux=True)(params, *jax.tree.map(lambda x: x[:, rows], data))
            change, optimizer = self.optimizer.update(gradient, optimizer)
            return (jax.tree.map(jnp.add, params, change), optimizer), metrics

        def epoch(carry: Any, key: Array) -> tuple[Any, dict[str, Array]]:
            rows = jax.random.permutation(key, rows_each)
            return lax.scan(update, carry, rows.reshape(self.config.minibatches, -1))

        carry = state.params, state.optimizer
        (params, optimizer), metrics = lax.scan(epoch, carry, jax.random.split(key, self.config.epochs))
        return params, optimizer, jax.tree.map(jnp.mean, metrics)

    def loss(self, params: Any, row: Transition, advantage: Array, target: Array) -> tuple[Array, dict[str, Array]]:
        """The clipped surrogate objective plus the squared error of the values, over a minibatch."""
        mean, log_std, value = self.networks.apply(params, row.obs)
        ratio = jnp.exp(log_density(row.action, mean, log_std) - row.log_prob)
        clipped = jnp.clip(ratio, 1 - self.config.clip, 1 + self.config.clip)
        advantage = normalize(advantage)
        policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage).mean()
        value_loss = jnp.square(value - target).mean()
        metrics = {"policy_loss": policy_loss, "value_loss": value_loss}
        return policy_loss + self.config.value_weight * value_loss, metrics

    def best_action(self, params: Any, statistics: Statistics, obs: Array) -> Array:
        """The mean of the policy: the action without noise, for evaluation."""
        return self.networks.apply(params, statistics.normalize(obs))[0]


def log_density(action: Array, mean: Array, log_std: Array) -> Array:
    """The logarithm of the policy's probability density."""
    return norm.logpdf(action, mean, jnp.exp(log_std)).sum(axis=-1)


if __name__ == "__main__":
    runs.main(__doc__ or "", Config, PPO)
