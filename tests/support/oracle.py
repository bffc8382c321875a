"""Generalized Advantage Estimation by definition: float64 NumPy, episode by episode, a sum over all later TD errors.

    A_t = sum over k >= 0, to the end of the episode, of (gamma lambda)^k delta_{t+k}

No recursion, no carry, and nothing of the library: an oracle that shared the idea of the code would share its bugs.
"""

import numpy as np


def oracle(
    rewards,
    values,
    terminated,
    truncated=None,
    *,
    gamma,
    lambda_,
    bootstrap_value=None,
    final_values=None,
    mask=None,
    n=None,
):
    """Returns (advantages, targets) for time-major arrays [T, *B], worker by worker; with `n`, sums of n TD errors."""
    rewards, values = np.asarray(rewards, np.float64), np.asarray(values, np.float64)
    if bootstrap_value is None:
        values, bootstrap_value = values[:-1], values[-1]
    arrays = {
        "rewards": rewards,
        "values": values,
        "terminated": np.asarray(terminated) != 0,
        "truncated": np.zeros(rewards.shape, bool) if truncated is None else np.asarray(truncated) != 0,
        "final_values": np.full(rewards.shape, None) if final_values is None else np.asarray(final_values, np.float64),
        "mask": np.ones(rewards.shape, bool) if mask is None else np.asarray(mask) != 0,
        "gamma": np.broadcast_to(np.asarray(gamma, np.float64), rewards.shape),
        "lambda_": np.broadcast_to(np.asarray(lambda_, np.float64), rewards.shape),
    }
    advantages = np.zeros(rewards.shape)
    for worker in np.ndindex(rewards.shape[1:]):
        pick = (slice(None), *worker)
        one = {name: x[pick] for name, x in arrays.items()}
        advantages[pick] = one_worker(**one, bootstrap_value=np.asarray(bootstrap_value, np.float64)[worker], n=n)
    return advantages, advantages + values


def one_worker(rewards, values, gamma, lambda_, n, **boundaries):
    advantages = np.zeros(len(rewards))
    for rows, next_value in episodes(values, **boundaries):
        following = [*values[rows[1:]], next_value]
        deltas = [rewards[t] + gamma[t] * v - values[t] for t, v in zip(rows, following, strict=True)]
        for i, t in enumerate(rows):
            weights = np.cumprod([1.0, *(gamma * lambda_)[rows[i:-1]]])
            advantages[t] = np.dot(weights[:n], deltas[i:][:n])
    return advantages


def vtrace_oracle(rewards, values, terminated, *, log_rhos, clip_rho=1.0, clip_c=1.0, clip_pg_rho=1.0, **others):
    """Returns (advantages, targets) of V-trace for [T, N]; the targets are the sum in equation 1 of the paper."""
    shape, log_rhos = np.shape(rewards), np.asarray(log_rhos, np.float64)
    gamma, lambda_ = (np.broadcast_to(np.asarray(others.pop(k), np.float64), shape) for k in ("gamma", "lambda_"))
    advantages, targets = np.zeros(shape), np.array(values[:-1], np.float64)
    default = {"truncated": np.zeros(shape, bool), "final_values": np.full(shape, None), "mask": np.ones(shape, bool)}
    boundaries = {"terminated": terminated, **default, **{k: x for k, x in others.items() if x is not None}}
    for worker in range(shape[1]):
        one = {k: np.asarray(x)[:, worker] for k, x in boundaries.items()}
        value = np.asarray(values, np.float64)[:, worker]
        for rows, next_value in episodes(value, **one, bootstrap_value=value[-1]):
            following = np.array([*value[rows[1:]], next_value])
            w, g, la = np.exp(log_rhos[rows, worker]), gamma[rows, worker], lambda_[rows, worker]
            deltas = np.minimum(w, clip_rho) * (rewards[rows, worker] + g * following - value[rows])
            for i, t in enumerate(rows):
                weights = np.cumprod([1.0, *(g * la * np.minimum(w, clip_c))[i:-1]])
                targets[t, worker] = value[t] + np.dot(weights, deltas[i:])
            later = np.array([*targets[rows[1:], worker], next_value])
            ahead = rewards[rows, worker] + g * ((1 - la) * following + la * later) - value[rows]
            advantages[rows, worker] = np.minimum(w, clip_pg_rho) * ahead
    return advantages, targets


def standardized(x, mask=None, ddof=0):
    """Mean 0 and variance 1 over the unmasked entries, and 0 elsewhere."""
    x = np.asarray(x, np.float64)
    mask = np.ones(x.shape, bool) if mask is None else mask
    return np.where(mask, (x - x[mask].mean()) / x[mask].std(ddof=ddof), 0)


def episodes(values, terminated, truncated, final_values, mask, bootstrap_value):
    """Yields the unmasked rows of each episode, or of the part that the rollout holds, and the value after the last."""
    rows = []
    for t in np.flatnonzero(mask):
        if truncated[t] and not terminated[t] and final_values[t] is None:
            # V(final observation) is unknown: the row has no advantage, and the row before bootstraps from its value.
            if rows:
                yield rows, values[t]
            rows = []
            continue
        rows.append(t)
        if terminated[t] or truncated[t]:
            yield rows, 0.0 if terminated[t] else final_values[t]
            rows = []
    if rows:
        yield rows, bootstrap_value
