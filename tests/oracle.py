"""Generalized Advantage Estimation by its definition: float64 NumPy, episode by episode, a sum over every later delta.

    A_t = sum over k >= 0, to the end of the episode, of (gamma lambda)^k delta_{t+k}

No recursion, no carry, and nothing of the library: an oracle that shares the idea of the code shares its bugs.
"""

import numpy as np


def oracle(rewards, values, terminated, truncated=None, *, gamma, lambda_, bootstrap_value=None, final_values=None):
    """Returns (advantages, targets) for time-major arrays [T, *B], worker by worker."""
    rewards, values = np.asarray(rewards, np.float64), np.asarray(values, np.float64)
    if bootstrap_value is None:
        values, bootstrap_value = values[:-1], values[-1]
    terminated = np.asarray(terminated) != 0
    truncated = np.zeros_like(terminated) if truncated is None else np.asarray(truncated) != 0
    advantages = np.zeros_like(rewards)
    for worker in np.ndindex(rewards.shape[1:]):
        pick = (slice(None), *worker)
        finals = None if final_values is None else np.asarray(final_values, np.float64)[pick]
        advantages[pick] = one_worker(
            rewards[pick],
            values[pick],
            terminated[pick],
            truncated[pick],
            gamma,
            lambda_,
            np.asarray(bootstrap_value, np.float64)[worker],
            finals,
        )
    return advantages, advantages + values


def one_worker(rewards, values, terminated, truncated, gamma, lambda_, bootstrap_value, final_values):
    advantages = np.zeros(len(rewards))
    for rows, next_value in episodes(values, terminated, truncated, bootstrap_value, final_values):
        following = [*values[rows[1:]], next_value]
        deltas = [rewards[t] + gamma * v - values[t] for t, v in zip(rows, following, strict=True)]
        for i, t in enumerate(rows):
            advantages[t] = sum((gamma * lambda_) ** k * delta for k, delta in enumerate(deltas[i:]))
    return advantages


def episodes(values, terminated, truncated, bootstrap_value, final_values):
    """Yields each (piece of an) episode as its rows and the value of the state after the last of them."""
    rows = []
    for t in range(len(values)):
        dropped = truncated[t] and not terminated[t] and final_values is None
        if (
            dropped
        ):  # nothing is known of what follows: the rows before it bootstrap from V(s_t), and it has no advantage
            next_value = values[t]
        else:
            rows.append(t)
            next_value = 0.0 if terminated[t] else final_values[t] if truncated[t] else bootstrap_value
        if terminated[t] or truncated[t] or t == len(values) - 1:
            if rows:
                yield np.array(rows), next_value
            rows = []
