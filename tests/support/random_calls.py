"""Random calls over all arguments of the estimators, against the oracle: `python tests/conformance.py --random 600`."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from support.oracle import oracle, vtrace_oracle
from support.rollouts import FLAGS, PARAMETERS, Rollout, random_rollout

ESTIMATORS = ("gae", "gae", "vtrace", "n_step_advantages")
FLOATS = (np.float32, jnp.bfloat16, jnp.float16)


def run(lib, seconds, most=10**9, of_a_kind=8, seed=0):
    """Makes random calls, and returns their number and the largest error: relative, in units of the dtype's epsilon.

    One compiled program serves the calls of a kind.
    """
    stop, worst, count = time.monotonic() + seconds, 0.0, 0
    while time.monotonic() < stop and count < most:
        kind, contents = np.random.default_rng((seed, count // of_a_kind)), np.random.default_rng((seed, count, 1))
        worst = max(worst, error_of(lib, kind, contents))
        count += 1
    return count, worst


def error_of(lib, rng, contents):
    """Returns the largest error of one random call, and raises an AssertionError for a wrong dtype.

    `rng` draws what is compiled: shapes, dtypes, options. `contents` draws the numbers.
    """
    name, rollout = rng.choice(ESTIMATORS), typed(rng, some_rollout(rng, contents))
    others = some_options(rng, contents, name, rollout)
    log_rhos = others.pop("log_rhos", None)
    want = wanted(name, rollout, log_rhos, others)
    poisoned, log_rhos = poison(contents, rollout, log_rhos)
    masked_target = np.where(np.isfinite(poisoned.values[:-1].astype(np.float64)), poisoned.values[:-1], 0)
    want = [want[0], np.where(rollout.live, want[1], masked_target)]
    arguments = poisoned.arguments()
    if rng.random() < 0.5:
        arguments |= {"values": poisoned.values[:-1], "bootstrap_value": poisoned.values[-1]}
    arguments |= {} if log_rhos is None else {"log_rhos": log_rhos}
    if name == "n_step_advantages":
        del arguments["lambda_"]
    floats = [x.dtype for k, x in arguments.items() if k not in (*FLAGS, *PARAMETERS) and isinstance(x, np.ndarray)]
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*[x for x in floats if jnp.issubdtype(x, jnp.floating)])
    for flag in FLAGS:
        if arguments[flag] is not None:
            arguments[flag] = arguments[flag].astype(rng.choice([bool, np.int32, np.uint8, np.float32]))

    axis = int(rng.integers(rollout.rewards.ndim))
    arguments = {k: in_layout(k, x, axis, rollout) for k, x in arguments.items()}
    outputs = getattr(lib, name)(**arguments, **others, time_axis=axis - rng.integers(2) * rollout.rewards.ndim)
    outputs = [outputs] if name == "n_step_advantages" else outputs
    assert all(x.dtype == dtype for x in outputs), (name, dtype, arguments)
    got = [np.moveaxis(np.asarray(x, np.float64), axis, 0) for x in outputs]
    scale = max(1.0, *(np.abs(w).max(initial=0) for w in want))
    errors = [np.abs(g - w).max(initial=0) / scale for g, w in zip(got, want, strict=False)]
    return float(max(errors)) / float(jnp.finfo(dtype).eps)


def some_rollout(rng, contents):
    def parameter(least):
        if rng.random() < 0.5:
            return float(contents.choice([0.0, 0.5, 0.95, 1.0, contents.uniform(least, 1)]))
        return str(rng.choice(["step", "worker", "both"]))

    rollout = random_rollout(
        int(contents.integers(2**32)),
        steps=int(rng.choice([1, 2, 7, 24])),
        batch=[(), (1,), (5,), (2, 3)][rng.integers(4)],
        ends=float(contents.choice([0.0, 0.2, 0.6, 1.0])),
        truncation=[None, "dropped", "final_values"][rng.integers(3)],
        dead=float(rng.choice([0.0, 0.3, 1.0])),
        gamma=parameter(-1),
        lambda_=parameter(0),
    )
    if contents.random() < 0.5:
        return rollout
    if np.ndim(rollout.gamma) == 0:
        return rollout.replace(gamma=-rollout.gamma)
    return rollout.replace(gamma=rollout.gamma * contents.choice(np.array([1, -1], np.float32), rollout.gamma.shape))


def typed(rng, rollout):
    """Returns the rollout with arrays of other dtypes, some of the time."""
    changes: dict[str, Any] = {}
    if rng.random() < 0.3:
        for name in ("rewards", "values", "final_values"):
            x = getattr(rollout, name)
            changes[name] = None if x is None else x.astype(FLOATS[rng.integers(3)])
    if rng.random() < 0.2:
        changes["rewards"] = np.rint(3 * rollout.rewards).astype(np.int32)
    if np.ndim(rollout.gamma) and rng.random() < 0.3:
        changes["gamma"] = np.asarray(rollout.gamma, np.float64)
    return rollout.replace(**changes)


def some_options(rng, contents, name, rollout):
    if name == "n_step_advantages":
        return {"n": int(rng.choice([1, 2, 5, 100]))}
    options: dict[str, Any] = {"implementation": [None, None, "scan", "blocked"][rng.integers(4)]}
    if name == "vtrace":
        clips = {k: float(rng.choice([0.5, 1.0, 2.0])) for k in ("clip_rho", "clip_c", "clip_pg_rho")}
        options |= clips | {"log_rhos": contents.normal(size=rollout.rewards.shape).astype(np.float32)}
    return options


def wanted(name, rollout, log_rhos, others):
    """Returns (advantages, targets) by definition."""
    arguments = rollout.replace(gamma=rollout.full(rollout.gamma), lambda_=rollout.full(rollout.lambda_)).arguments()
    others = {k: x for k, x in others.items() if k != "implementation"}
    if name == "gae":
        return oracle(**arguments)
    if name == "n_step_advantages":
        return oracle(**arguments | {"lambda_": 1.0}, **others)
    workers = {k: None if x is None else x.reshape(len(x), -1) for k, x in (arguments | {"log_rhos": log_rhos}).items()}
    return [x.reshape(rollout.rewards.shape) for x in vtrace_oracle(**workers, **others)]


def poison(rng, rollout, log_rhos) -> tuple[Rollout, np.ndarray | None]:
    """Writes NaN or infinity into the entries that no estimator reads, some of the time."""
    if rng.random() < 0.5:
        return rollout, log_rhos
    bad, live = rng.choice([np.nan, np.inf, -np.inf]), rollout.live
    cut = np.zeros_like(live) if rollout.truncated is None else rollout.truncated & ~rollout.terminated & live
    reads_last = np.zeros(live.shape[1:], bool)
    for t in range(rollout.steps):
        reads_last = np.where(live[t], ~(rollout.terminated[t] | cut[t]), reads_last)

    def kept(x, read):
        return x if x is None or not jnp.issubdtype(x.dtype, jnp.floating) else np.where(read, x, x.dtype.type(bad))

    changes = {
        "rewards": kept(rollout.rewards, live & ~rollout.dropped),
        "values": kept(rollout.values, np.stack([*live, reads_last])),
        "final_values": kept(rollout.final_values, cut),
    }
    by_row = {k: getattr(rollout, k) for k in PARAMETERS if np.shape(getattr(rollout, k)) == live.shape}
    changes |= {k: kept(x, live) for k, x in by_row.items() if live.ndim and np.ndim(x)}
    return rollout.replace(**changes), kept(log_rhos, live)


def in_layout(name, x, axis, rollout):
    """Returns an argument with time on another axis."""
    if not isinstance(x, np.ndarray) or name == "bootstrap_value":
        return x
    if name in PARAMETERS:
        x = x.reshape((1,) * (rollout.rewards.ndim - x.ndim) + x.shape)
    return np.moveaxis(x, 0, axis)
