"""Generalized Advantage Estimation by definition: float64 NumPy, episode by episode, a sum over all later TD errors.

    A_t = sum over k >= 0, to the end of the episode, of (gamma lambda)^k delta_{t+k}

No recursion, no carry, and nothing of the library: an oracle that shared the idea of the code would share its bugs.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np


def oracle(rewards, values, *flags, n=None, **others):
    """Returns (advantages, targets) for the arguments of `gae`, arrays [T, *B]; with `n`, sums of n TD errors."""
    advantages, state_values = np.zeros(np.shape(rewards)), np.asarray(values, np.float64)[: len(rewards)]
    for worker, x in each_worker(rewards, values, *flags, **others):
        for rows, next_value in episodes(x):
            deltas = x.rewards[rows] + x.gamma[rows] * [*x.values[rows[1:]], next_value] - x.values[rows]
            for i, t in enumerate(rows):
                weights = np.cumprod([1.0, *(x.gamma * x.lambda_)[rows[i:-1]]])
                advantages[t, *worker] = np.dot(weights[:n], deltas[i:][:n])
    return advantages, advantages + state_values


def vtrace_oracle(rewards, values, *flags, clip_rho=1.0, clip_c=1.0, clip_pg_rho=1.0, **others):
    """Returns (advantages, targets) of V-trace; the targets are the sum in equation 1 of the paper."""
    advantages, targets = np.zeros(np.shape(rewards)), np.array(values, np.float64)[: len(rewards)]
    for worker, x in each_worker(rewards, values, *flags, **others):
        rho, c, pg_rho = (np.minimum(np.exp(x.log_rhos), clip) for clip in (clip_rho, clip_c, clip_pg_rho))
        for rows, next_value in episodes(x):
            following = np.array([*x.values[rows[1:]], next_value])
            deltas = rho[rows] * (x.rewards[rows] + x.gamma[rows] * following - x.values[rows])
            for i, t in enumerate(rows):
                weights = np.cumprod([1.0, *(x.gamma * x.lambda_ * c)[rows[i:-1]]])
                targets[t, *worker] += np.dot(weights, deltas[i:])
            later = np.array([*targets[(rows[1:], *worker)], next_value])
            ahead = x.gamma[rows] * ((1 - x.lambda_[rows]) * following + x.lambda_[rows] * later)
            advantages[(rows, *worker)] = pg_rho[rows] * (x.rewards[rows] + ahead - x.values[rows])
    return advantages, targets


def each_worker(rewards, values, terminated, truncated=None, *, bootstrap_value=None, **others):
    """Yields the index of each worker, and its arrays [T]; V(s_T) is apart."""
    shape, values = np.shape(rewards), np.asarray(values, np.float64)
    last_value = values[-1] if bootstrap_value is None else np.asarray(bootstrap_value, np.float64)
    given = {"rewards": rewards, "values": values[: len(rewards)], "terminated": terminated, "truncated": truncated}
    arrays: dict[str, Any] = {"truncated": False, "mask": True}
    arrays |= {name: x for name, x in (others | given).items() if x is not None}
    for name, x in arrays.items():
        assert name in ("gamma", "lambda_") or np.shape(x) in ((), shape), name
        flag = name in ("terminated", "truncated", "mask")
        arrays[name] = np.broadcast_to(np.asarray(x, bool if flag else np.float64), shape)
    for worker in np.ndindex(shape[1:]):
        one: dict[str, Any] = {"final_values": None, "last_value": last_value[worker]}
        yield worker, SimpleNamespace(**one | {name: x[:, *worker] for name, x in arrays.items()})


def episodes(x):
    """Yields the unmasked rows of each episode, or of the part that the rollout holds, and the value after the last."""
    rows, dropped = [], x.truncated & ~x.terminated & (x.final_values is None)
    for t in np.flatnonzero(x.mask):
        if dropped[t]:
            # V(final observation) is unknown: the row has no advantage, and the row before bootstraps from its value.
            if rows:
                yield rows, x.values[t]
            rows = []
            continue
        rows.append(t)
        if x.terminated[t] or x.truncated[t]:
            yield rows, 0.0 if x.terminated[t] else x.final_values[t]
            rows = []
    if rows:
        yield rows, x.last_value


def standardized(x, mask=None, ddof=0):
    """Mean 0 and variance 1 over the unmasked entries, and 0 elsewhere."""
    x = np.asarray(x, np.float64)
    mask = np.ones(x.shape, bool) if mask is None else mask
    return np.where(mask, (x - x[mask].mean()) / x[mask].std(ddof=ddof), 0)
