"""How fast is `gae` on this machine, beside rlax and beside one pass over the same memory?

    python examples/benchmark.py

Times are medians over interleaved runs, so that a machine whose speed drifts is no friend of either side: read the
ratios first. Every contender is checked against the others before it is timed.
"""

import argparse
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rlax
from jax import Array
from rich.console import Console
from rich.table import Table

from gae_jax import gae

GAMMA, LAMBDA = 0.99, 0.95
FLOOR, RIVAL = "one pass: inputs read, one output written", "rlax, advantages"
Contender = Callable[..., Any]


def gae_both(rewards: Array, values: Array, terminated: Array, last_value: Array | None = None) -> tuple[Array, Array]:
    """`gae`, from values [T+1, N], or from [T, N] and those of the last states."""
    return gae(rewards, values, terminated, gamma=GAMMA, lambda_=LAMBDA, bootstrap_value=last_value)


def gae_advantages(*rollout: Array) -> Array:
    """`gae` where nobody uses the targets: the compiler leaves them out."""
    return gae_both(*rollout)[0]


def rlax_advantages(rewards: Array, values: Array, terminated: Array, last_value: Array | None = None) -> Array:
    """The same from rlax, which wants discounts for flags and all T+1 values in one array."""
    values = values if last_value is None else jnp.concatenate([values, last_value[None]])
    discounts = GAMMA * (1 - terminated.astype(jnp.float32))
    estimate = jax.vmap(rlax.truncated_generalized_advantage_estimation, (1, 1, None, 1), 1)
    return jnp.asarray(estimate(rewards, discounts, LAMBDA, values))


def one_pass(rewards: Array, values: Array, terminated: Array, last_value: Array | None = None) -> Array:
    """What it takes to read the inputs and to write one output, with next to no arithmetic."""
    return jnp.where(terminated, rewards, rewards + values[: len(rewards)] + (0 if last_value is None else last_value))


CONTENDERS: dict[str, Contender] = {
    "gae, advantages": jax.jit(gae_advantages),
    "gae, advantages and targets": jax.jit(gae_both),
    RIVAL: jax.jit(rlax_advantages),
    FLOOR: jax.jit(one_pass),
}


def random_rollouts(steps: int, workers: int) -> dict[str, tuple[Array, ...]]:
    """The same rollout in the two forms that agents hold it in."""
    rng = np.random.default_rng(0)
    rewards, values = (jnp.asarray(rng.normal(size=(n, workers)), jnp.float32) for n in (steps, steps + 1))
    terminated = jnp.asarray(rng.random((steps, workers)) < 0.01)
    return {
        "values [T, N] and bootstrap_value [N]": (rewards, jnp.array(values[:-1]), terminated, jnp.array(values[-1])),
        "values [T+1, N]": (rewards, values, terminated),
    }


def check(rollout: tuple[Array, ...]) -> None:
    """Refuses to time what does not compute the same."""
    want = CONTENDERS[RIVAL](*rollout)
    for name in CONTENDERS.keys() - {RIVAL, FLOOR}:
        got = jax.tree.leaves(CONTENDERS[name](*rollout))[0]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4, err_msg=name)


def median_times(rollout: tuple[Array, ...], seconds: float) -> dict[str, float]:
    """Seconds per call: each contender in turn, over and over, for about that many seconds in all."""
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[FLOOR]) < 20:
        for name, contender in CONTENDERS.items():
            start = time.perf_counter()
            jax.block_until_ready(contender(*rollout))
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(x)) for name, x in times.items()}


def main() -> None:
    """Times every contender at every shape and prints a table of medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["128x4096", "2048x2048"], help="T x N: steps by workers")
    parser.add_argument("--seconds", type=float, default=10.0, help="time to spend on each table")
    options = parser.parse_args()

    console = Console()
    versions = f"jax {jax.__version__}, rlax {importlib.metadata.version('rlax')}, Python {platform.python_version()}"
    console.print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, float32; {versions}")
    for shape in options.shapes:
        for form, rollout in random_rollouts(*(int(x) for x in shape.split("x"))).items():
            with console.status(f"{shape}, {form}: compiling, checking, timing"):
                check(rollout)
                times = median_times(rollout, options.seconds)
            table = Table("contender", "median, µs", "rlax / it", "it / one pass", title=f"T x N = {shape}, {form}")
            for name, x in times.items():
                table.add_row(name, f"{x * 1e6:.0f}", f"{times[RIVAL] / x:.2f}", f"{x / times[FLOOR]:.2f}")
            console.print(table)


if __name__ == "__main__":
    main()
