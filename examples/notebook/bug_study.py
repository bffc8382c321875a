"""Trains a small PPO agent with the right advantages, with common GAE bugs, and with other λ; writes learning curves.

    python examples/notebook/bug_study.py --out bug_study.json    # 32 seeds of each: ten minutes on two CPU cores
    python examples/notebook/bug_study.py --draw bug_study.png    # the figure of the README, without training

The task is to balance a pole on a cart (Barto, Sutton and Anderson, 1983), with a reward of 1 a step. An episode of
training terminates when the pole or the cart leaves its bounds, and is truncated by a time limit. An evaluation has
five times as many steps, so it shows what training never does. `gae_explained.ipynb` draws all results.
"""

import dataclasses
import functools
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gae_jax import gae, normalize

TIME_LIMIT = 100  # steps of an episode in training
EVALUATION_STEPS, EVALUATION_EPISODES = 500, 16
ENVS, STEPS, EPOCHS, MINIBATCHES = 32, 64, 4, 8  # a rollout is [STEPS, ENVS]
EVALUATIONS, ITERATIONS_BETWEEN = 16, 4  # in all 64 iterations: 131,072 steps
GAMMA, LAMBDA, CLIP, LEARNING_RATE, VALUE_WEIGHT, MAX_GRAD_NORM = 0.99, 0.95, 0.2, 1e-3, 0.5, 0.5
VALUE_SCALE = 10.0  # the value network's output counts in units of so many steps

# The bugs. Each takes the arguments of `gae` by name, and returns advantages.


def right(**case: Any) -> Array:
    """Returns the advantages of the library."""
    return gae(**case).advantages


def either_flag(case: dict[str, Any]) -> Array:
    """Returns where an episode terminates or is truncated."""
    truncated = case.get("truncated")
    return jnp.asarray(case["terminated"]) if truncated is None else case["terminated"] | truncated


def reversed_result(**case: Any) -> Array:
    """The recursion appended to a list, which runs backwards in time, and the list was never reversed."""
    return right(**case)[::-1]


def flag_of_the_step_before(**case: Any) -> Array:
    """`terminated[t]` is true where transition t - 1 ended the episode."""
    flag = jnp.asarray(case["terminated"])
    return right(**case | {"terminated": jnp.concatenate([jnp.zeros_like(flag[:1]), flag[:-1]])})


def termination_ignored(**case: Any) -> Array:
    """The next episode's value follows the end of an episode."""
    return right(**case | {"terminated": jnp.zeros_like(case["terminated"])})


def truncation_as_termination(**case: Any) -> Array:
    """One flag, `done`, for both: nothing of value follows the time limit."""
    return right(**case | {"terminated": either_flag(case), "truncated": None, "final_values": None})


def truncation_not_cut(**case: Any) -> Array:
    """The time limit has no flag: the next episode's value follows it."""
    return right(**case | {"truncated": None, "final_values": None})


def own_value_for_the_final_one(**case: Any) -> Array:
    """V(s_t) in place of V(final observation), since the reset has overwritten the observation."""
    known = case.get("final_values") is not None
    return right(**case | ({"final_values": case["values"]} if known else {}))


def lambda_missing_on_the_first_hop(**case: Any) -> Array:
    """delta_t + gamma A_{t+1}, where A is right: every later delta has 1 / lambda times its weight."""
    advantages = right(**case)
    later = jnp.concatenate([advantages[1:], jnp.zeros_like(advantages[:1])])
    return right(**case | {"lambda_": 0.0}) + case["gamma"] * jnp.where(either_flag(case), 0, later)


BUGS: dict[str, Callable[..., Array]] = {
    "right": right,
    "result in reverse": reversed_result,
    "flag of the step before": flag_of_the_step_before,
    "termination ignored": termination_ignored,
    "truncation as termination": truncation_as_termination,
    "truncation not cut": truncation_not_cut,
    "V(s_t) for V(final)": own_value_for_the_final_one,
    "λ missing on the first hop": lambda_missing_on_the_first_hop,
}

LEFT_OUT = "V(s_t) for V(final)"  # in this task the two values are nearly equal

SWEEP = (0.0, 0.5, 0.8, 0.9, 0.98, 1.0)  # λ in place of LAMBDA


def with_lambda(lambda_: float) -> Callable[..., Array]:
    """Returns the right estimator with another λ."""
    return lambda **case: right(**case | {"lambda_": lambda_})


# The orders. Each takes a random key and the right advantages, `[STEPS, ENVS]`, and moves advantages to other rows.


def in_order(key: Array, advantages: Array) -> Array:
    """Every advantage stays where it belongs."""
    return advantages


def reversed_in_time(key: Array, advantages: Array) -> Array:
    """A worker keeps its advantages, in reverse."""
    return advantages[::-1]


def random_order_of_time(key: Array, advantages: Array) -> Array:
    """A worker keeps its advantages, in a random order of time."""
    return jax.random.permutation(key, advantages, axis=0, independent=True)


def mean_of_the_worker(key: Array, advantages: Array) -> Array:
    """Every row of a worker has the mean of the worker's advantages."""
    return jnp.broadcast_to(advantages.mean(axis=0), advantages.shape)


def reversed_of_another_worker(key: Array, advantages: Array) -> Array:
    """A worker has the advantages of another worker, in reverse."""
    distance = jax.random.randint(key, (), 1, advantages.shape[1])
    return jnp.roll(advantages[::-1], distance, axis=1)


def all_shuffled(key: Array, advantages: Array) -> Array:
    """Any row of any worker has any advantage."""
    return jax.random.permutation(key, advantages.ravel()).reshape(advantages.shape)


ORDERS: dict[str, Callable[[Array, Array], Array]] = {
    "random order of time": random_order_of_time,
    "mean of the worker": mean_of_the_worker,
    "reverse of another worker": reversed_of_another_worker,
    "all shuffled": all_shuffled,
}

# What an agent is trained with: an estimator, the order of the policy's advantages, and the order of the critic's.
TRAINED = {name: (estimate, in_order, in_order) for name, estimate in BUGS.items() if name != LEFT_OUT}
TRAINED |= {name: (right, order, order) for name, order in ORDERS.items()}
TRAINED["reverse for the policy only"] = right, reversed_in_time, in_order
TRAINED["reverse for the critic only"] = right, in_order, reversed_in_time
TRAINED |= {f"λ = {lambda_:g}": (with_lambda(lambda_), in_order, in_order) for lambda_ in SWEEP}

# The task.


def reset(key: Array) -> Array:
    """Draws a cart near the middle with a pole nearly upright: position, speed, angle, angular speed."""
    return jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)


def push(state: Array, action: Array) -> tuple[Array, Array]:
    """Pushes for 0.02 s with 10 N to the left (0) or right (1); returns the next state, and if it is out of bounds."""
    _, speed, angle, spin = state
    force = jnp.where(action == 1, 10.0, -10.0)
    pole_mass, total_mass, half_length = 0.1, 1.1, 0.5
    acceleration = (force + pole_mass * half_length * spin**2 * jnp.sin(angle)) / total_mass
    inertia = half_length * (4 / 3 - pole_mass * jnp.cos(angle) ** 2 / total_mass)
    turn = (9.8 * jnp.sin(angle) - jnp.cos(angle) * acceleration) / inertia
    thrust = acceleration - pole_mass * half_length * turn * jnp.cos(angle) / total_mass
    state = state + 0.02 * jnp.stack([speed, thrust, spin, turn])
    return state, (jnp.abs(state[0]) > 2.4) | (jnp.abs(state[2]) > 0.2095)


# The agent.


class Rollout(NamedTuple):
    """Transitions, `[T, N]`."""

    obs: Array
    action: Array
    log_prob: Array
    value: Array
    terminated: Array
    truncated: Array
    final_value: Array  # V of what the transition led to, before any reset
    length: Array  # of the episode so far


def network(key: Array, outputs: int, last_scale: float) -> list[tuple[Array, Array]]:
    """Draws the weights of two hidden layers of 32 units and of the last layer."""
    sizes, scales = (4, 32, 32, outputs), (1.0, 1.0, last_scale)
    # Not orthogonal ones: under vmap they hang in jaxlib 0.10.2 on two cores.
    draw = [jax.nn.initializers.variance_scaling(s, "fan_in", "truncated_normal") for s in scales]
    keys = jax.random.split(key, 3)
    return [(draw[i](keys[i], sizes[i : i + 2]), jnp.zeros(sizes[i + 1])) for i in range(3)]


def apply(layers: list[tuple[Array, Array]], x: Array) -> Array:
    """Applies a multilayer perceptron."""
    for weights, bias in layers[:-1]:
        x = jnp.tanh(x @ weights + bias)
    return x @ layers[-1][0] + layers[-1][1]


def log_probs(params: Any, obs: Array) -> Array:
    """Returns the log-probabilities of both actions."""
    return jax.nn.log_softmax(apply(params["policy"], obs))


def value(params: Any, obs: Array) -> Array:
    """Returns V(s), in steps."""
    return VALUE_SCALE * apply(params["value"], obs)[..., 0]


def act(params: Any, envs: Any, key: Array) -> tuple[Any, Rollout]:
    """Takes one step in every environment, and resets those whose episode ended."""
    obs, length = envs
    action_key, reset_key = jax.random.split(key)
    logits = log_probs(params, obs)
    action = jax.random.categorical(action_key, logits)
    final_obs, terminated = jax.vmap(push)(obs, action)
    length = length + 1
    truncated = (length >= TIME_LIMIT) & ~terminated
    ended = terminated | truncated
    log_prob = jnp.take_along_axis(logits, action[:, None], 1)[:, 0]
    rows = obs, action, log_prob, value(params, obs), terminated, truncated, value(params, final_obs), length
    fresh = jax.vmap(reset)(jax.random.split(reset_key, len(obs)))
    return (jnp.where(ended[:, None], fresh, final_obs), jnp.where(ended, 0, length)), Rollout(*rows)


def loss(params: Any, rows: Rollout, advantage: Array, target: Array) -> Array:
    """Computes PPO's clipped objective plus the squared error of the values."""
    log_prob = jnp.take_along_axis(log_probs(params, rows.obs), rows.action[:, None], 1)[:, 0]
    ratio, advantage = jnp.exp(log_prob - rows.log_prob), normalize(advantage)
    policy_loss = -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage).mean()
    return policy_loss + VALUE_WEIGHT * jnp.square((value(params, rows.obs) - target) / VALUE_SCALE).mean()


def adam(params: Any, moments: Any, gradient: Any, count: Array) -> tuple[Any, Any]:
    """Takes one step of Adam, with the gradient clipped to a norm of MAX_GRAD_NORM."""
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient)))
    gradient = jax.tree.map(lambda g: g * jnp.minimum(1.0, MAX_GRAD_NORM / (norm + 1e-8)), gradient)
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], gradient)
    second = jax.tree.map(lambda m, g: 0.999 * m + 0.001 * g**2, moments[1], gradient)
    rate = LEARNING_RATE * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
    return jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + 1e-8), params, first, second), (first, second)


def collect(estimate: Callable[..., Array], params: Any, envs: Any, key: Array) -> tuple[Any, Rollout, Array]:
    """Acts for STEPS steps, and estimates the advantages of the rollout."""
    envs, rollout = lax.scan(functools.partial(act, params), envs, jax.random.split(key, STEPS))
    advantages = estimate(
        rewards=jnp.ones_like(rollout.value),
        values=rollout.value,
        terminated=rollout.terminated,
        truncated=rollout.truncated,
        final_values=rollout.final_value,
        bootstrap_value=value(params, envs[0]),
        gamma=GAMMA,
        lambda_=LAMBDA,
    )
    return envs, rollout, advantages


def iterate(
    estimate: Any, policy_order: Any, critic_order: Any, state: Any, key: Array
) -> tuple[Any, tuple[Array, Array]]:
    """Acts, estimates advantages, and learns; returns how many steps the episodes that ended had, and their number."""
    params, moments, count, envs = state
    act_key, order_key, learn_key = jax.random.split(key, 3)
    envs, rollout, advantages = collect(estimate, params, envs, act_key)
    targets = critic_order(order_key, advantages) + rollout.value
    rows = rollout, policy_order(order_key, advantages), targets
    data = jax.tree.map(lambda x: x.reshape(STEPS * ENVS, *x.shape[2:]), rows)

    def update(carry: Any, rows: Array) -> tuple[Any, None]:
        params, moments, count = carry
        gradient = jax.grad(loss)(params, *jax.tree.map(lambda x: x[rows], data))
        return (*adam(params, moments, gradient, count + 1), count + 1), None

    keys = jax.random.split(learn_key, EPOCHS)
    shuffled = jax.vmap(lambda key: jax.random.permutation(key, STEPS * ENVS))(keys)
    carry, _ = lax.scan(update, (params, moments, count), shuffled.reshape(EPOCHS * MINIBATCHES, -1))
    ended = rollout.terminated | rollout.truncated
    return (*carry, envs), (jnp.sum(ended * rollout.length), jnp.sum(ended))


def evaluate(params: Any, key: Array) -> Array:
    """Returns the mean number of steps that the pole stays up, at most EVALUATION_STEPS, with the likelier action."""

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        obs, up = carry
        obs, out = jax.vmap(push)(obs, jnp.argmax(log_probs(params, obs), axis=-1))
        return (obs, up & ~out), up

    obs = jax.vmap(reset)(jax.random.split(key, EVALUATION_EPISODES))
    _, up = lax.scan(step, (obs, jnp.ones(EVALUATION_EPISODES, bool)), length=EVALUATION_STEPS)
    return up.sum(axis=0).mean()


def untrained(policy_key: Array, value_key: Array, env_key: Array) -> Any:
    """Returns the state of an agent before training: parameters, Adam's moments and count, environments."""
    params = {"policy": network(policy_key, 2, 0.01), "value": network(value_key, 1, 1.0)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    envs = jax.vmap(reset)(jax.random.split(env_key, ENVS)), jnp.zeros(ENVS, jnp.int32)
    return params, (zeros, zeros), jnp.zeros(()), envs


def train(estimate: Any, policy_order: Any, critic_order: Any, key: Array) -> tuple[Array, Array]:
    """Trains one agent, with one of BUGS and orders for the policy's loss and for the critic's targets.

    Returns the evaluations, `[EVALUATIONS + 1]`, the first one before training, and the mean length of the episodes of
    training between them, `[EVALUATIONS]`.
    """
    *start_keys, train_key, eval_key = jax.random.split(key, 5)
    state = untrained(*start_keys)

    def chunk(state: Any, keys: Array) -> tuple[Any, tuple[Array, Array]]:
        state, (steps, episodes) = lax.scan(
            functools.partial(iterate, estimate, policy_order, critic_order), state, keys
        )
        return state, (evaluate(state[0], eval_key), steps.sum() / jnp.maximum(1, episodes.sum()))

    keys = jax.random.split(train_key, (EVALUATIONS, ITERATIONS_BETWEEN))
    _, (evaluations, lengths) = lax.scan(chunk, state, keys)
    return jnp.append(evaluate(state[0], eval_key), evaluations), lengths


def train_seeds(name: str, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Trains agents 0 to seeds - 1 of TRAINED[name], all at once; returns what `train` does, with an axis of seeds."""
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    evaluations, lengths = jax.jit(jax.vmap(functools.partial(train, *TRAINED[name])))(keys)
    return np.asarray(evaluations, np.float64), np.asarray(lengths, np.float64)


def machine() -> dict[str, Any]:
    """Returns the machine and the versions that the numbers were made with."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "device": jax.devices()[0].device_kind,
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
    }


@dataclasses.dataclass(frozen=True)
class Options:
    """What to do, and where to write."""

    out: pathlib.Path = pathlib.Path("bug_study.json")  # where to write the results
    seeds: int = 32  # agents of each variant, 1 to 1024
    draw: pathlib.Path | None = None  # draw the results that lie beside this script into this file; nothing is trained

    def __post_init__(self) -> None:
        """Raises ValueError, which tyro prints, before any agent is trained."""
        if not 1 <= self.seeds <= 1024:
            raise ValueError(f"--seeds must be from 1 to 1024; got {self.seeds}")
        path = self.draw or self.out
        if path.is_dir() or not path.parent.is_dir():
            raise ValueError(f"{'--draw' if self.draw else '--out'}: cannot write {str(path)!r}")


def main() -> None:
    """Trains every variant and writes the file, or draws."""
    try:
        import gae_figures  # needs matplotlib
        import tyro
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error.name} is not installed; run: pip install -e '.[notebook]'")
    options = tyro.cli(Options, description=__doc__)
    if options.draw is None:
        write_results(options.out, options.seeds)
    else:
        gae_figures.same_curve_worse_agent(read_results()).savefig(options.draw, format="png")
        print(f"wrote {options.draw}")


def read_results() -> Any:
    """Returns the results that lie beside this script."""
    return json.loads(pathlib.Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def write_results(path: pathlib.Path, seeds: int) -> None:
    """Trains every variant and writes the file."""
    results = {}
    for name in TRAINED:
        start = time.process_time()
        evaluations, lengths = train_seeds(name, seeds)
        cpu_seconds = time.process_time() - start
        print(f"{name}: {evaluations[:, -1].mean():.0f} of {EVALUATION_STEPS} steps", flush=True)
        results[name] = {
            "evaluations": evaluations.round(1).tolist(),
            "training_lengths": lengths.round(1).tolist(),
            "cpu_seconds": round(cpu_seconds, 1),
        }
    settings = {
        "seeds": seeds,
        "time_limit": TIME_LIMIT,
        "evaluation_steps": EVALUATION_STEPS,
        "steps_between_evaluations": ITERATIONS_BETWEEN * STEPS * ENVS,
    }
    text = json.dumps({"machine": machine(), "settings": settings, "results": results}, ensure_ascii=False)
    path.write_text(text.replace("], [", "],\n[") + "\n", encoding="utf-8")  # one line for each seed
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
