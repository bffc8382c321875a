"""What each recipe of examples/guides/tokens.md computes, by definition: float64 NumPy, sums over later rows, no recursion.

`RECIPES` maps the heading of a recipe to a function from a random generator to the names that the recipe uses, and to a
function from those names to its outputs.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from support.oracle import oracle

Names = dict[str, Any]

GAMMA, LAMBDA = 0.97, 0.9


# Inputs.


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def token_batch(rng: np.random.Generator) -> Names:
    """Samples with prompts, tool turns and padding, [N, S]; one sample without any chosen token; NaN in masked rows."""
    samples, steps = 8, 48
    mask = np.zeros((samples, steps), bool)
    for row in mask[1:]:
        lengths = rng.integers(1, 9, size=9)  # prompt, turn, tool, turn, tool, turn, padding
        bounds = np.minimum(np.cumsum(lengths), steps)
        for start, stop in zip(bounds[0::2], bounds[1::2], strict=False):
            row[start:stop] = True
    rewards, values = (np.where(mask, floats(rng, samples, steps), np.nan).astype(np.float32) for _ in range(2))
    finished = rng.random(samples) < 0.5
    finished[1:3] = True, False
    return {
        "rewards": rewards,
        "values": values,
        "mask": mask,
        "finished": finished,
        "last_values": floats(rng, samples),
        "gamma": GAMMA,
        "lambda_": LAMBDA,
    }


def finished_tokens(rng: np.random.Generator) -> Names:
    """The same with the flags of the end, as the first recipe computes them."""
    names = token_batch(rng)
    terminated = np.zeros_like(names["mask"])
    for sample, rows in live_rows(names["mask"]):
        terminated[sample, rows[-1]] = names["finished"][sample]
    return names | {"terminated": terminated}


def tool_tokens(rng: np.random.Generator) -> Names:
    """Rewards also on the prompt, on the tool's tokens and after the end; some ends are on a tool's token."""
    names = token_batch(rng)
    mask, rewards, shape = names["mask"], names["rewards"], names["mask"].shape
    arrived = np.where(rng.random(shape) < 0.7, floats(rng, *shape), np.nan)
    terminated = np.zeros(shape, bool)
    for sample, rows in live_rows(mask):
        last = min(rows[-1] + rng.integers(3), shape[1] - 1)
        terminated[sample, last] = names["finished"][sample]
    return names | {"rewards": np.where(mask, rewards, arrived).astype(np.float32), "terminated": terminated}


def penalized_tokens(rng: np.random.Generator) -> Names:
    mask = token_batch(rng)["mask"]
    last = np.zeros_like(mask)
    for sample, rows in live_rows(mask):
        last[sample, rows[-1]] = True
    log_probs, ref_log_probs = -np.abs(floats(rng, 2, *mask.shape))
    scores = floats(rng, len(mask))
    return {
        "mask": mask,
        "last": last,
        "log_probs": log_probs,
        "ref_log_probs": ref_log_probs,
        "scores": scores,
        "beta": 0.05,
    }


def packed_tokens(rng: np.random.Generator) -> Names:
    steps = 50
    starts = np.sort(rng.choice(np.arange(1, steps), size=6, replace=False))
    return {
        "rewards": floats(rng, steps),
        "values": floats(rng, steps),
        "cu_seqlens": np.array([0, *starts, steps], np.int32),
        "gamma": GAMMA,
        "lambda_": LAMBDA,
    }


def packed_segments(rng: np.random.Generator) -> Names:
    """Four segments a row and padding; the last token of some segments is not in `mask`, and one has none there."""
    names = token_batch(rng)
    shape = names["mask"].shape
    segment_ids = np.sort(rng.integers(1, 6, shape), axis=1).astype(np.int32)  # the fifth is the padding
    mask = (rng.random(shape) < 0.6) & (segment_ids < 5)
    mask[0] &= segment_ids[0] != 2
    rewards, values = (np.where(mask, floats(rng, *shape), np.nan).astype(np.float32) for _ in range(2))
    return names | {"rewards": rewards, "values": values, "mask": mask, "segment_ids": segment_ids}


def split_tokens(rng: np.random.Generator) -> Names:
    """On a mesh of 2 x 4 devices; the second half of the tokens has another mean than the first."""
    names = finished_tokens(rng)
    names["rewards"] = names["rewards"] + np.float32(2) * (np.arange(names["mask"].shape[1]) > 24)
    return names | {"mesh": Mesh(np.reshape(jax.devices()[:8], (2, 4)), ("dp", "cp"))}


def steps_of(rng: np.random.Generator, *batch: int) -> Names:
    """Rollouts [T, *batch] of several episodes."""
    steps = 40
    return {
        "rewards": floats(rng, steps, *batch),
        "values": floats(rng, steps + 1, *batch),
        "terminated": rng.random((steps, *batch)) < 0.1,
        "gamma": GAMMA,
        "lambda_": LAMBDA,
    }


def plain(rng: np.random.Generator) -> Names:
    return steps_of(rng, 4)


def own_steps(rng: np.random.Generator) -> Names:
    """Rollouts of several episodes in which half of the rows are mine; rewards and ends on any row, some NaN."""
    names = steps_of(rng, 4)
    mask = rng.random((40, 4)) < 0.5
    rewards = np.where(mask | (rng.random((40, 4)) < 0.8), names["rewards"], np.nan).astype(np.float32)
    truncated = (rng.random((40, 4)) < 0.1) & ~names["terminated"]
    return names | {"rewards": rewards, "truncated": truncated, "mask": mask, "time_axis": 0}


def turn_based(rng: np.random.Generator) -> Names:
    """Three players in random order; every row has a reward for each of them."""
    player = rng.integers(3, size=(40, 4)).astype(np.int32)
    return steps_of(rng, 4, 3) | {"terminated": rng.random((40, 4)) < 0.1, "player": player}


def zero_sum(rng: np.random.Generator) -> Names:
    """Two players; the one who moved moves again in some rows."""
    return plain(rng) | {"player": rng.integers(2, size=(41, 4)).astype(np.int32)}


def unvalued_states(rng: np.random.Generator) -> Names:
    names = plain(rng)
    has_value = rng.random((41, 4)) < 0.7
    has_value[-1] = True
    values = np.where(has_value, names["values"], np.nan).astype(np.float32)
    return names | {"values": values, "has_value": has_value}


def second_rollout(rng: np.random.Generator) -> Names:
    """A rollout, and the carry of the rollout before it, whose rewards are kept for the reference."""
    rewards, ends = 5 * floats(rng, 80, 4) + np.float32(2), rng.random((80, 4)) < 0.1
    earlier = returns_so_far(rewards, ends)[:40]
    moments = [np.float32(x) for x in (earlier.size, earlier.mean(), earlier.var())]
    count, mean, variance = (np.asarray(x) for x in moments)
    return {
        "rewards": rewards[40:],
        "ends": ends[40:],
        "carry": (np.where(ends[39], 0, earlier[-1]).astype(np.float32), count, mean, variance),
        "gamma": GAMMA,
        "whole": (rewards, ends),
    }


def mortal_agents(rng: np.random.Generator) -> Names:
    """Agents die at random, and live again after the end of the episode."""
    names = steps_of(rng, 4, 3)
    done = rng.random((40, 4)) < 0.06
    dies = rng.random((40, 4, 3)) < 0.08
    alive, died = np.ones((40, 4, 3), bool), np.zeros((40, 4, 3), bool)
    for t in range(40):
        if t:
            alive[t] = np.where(done[t - 1, :, None], True, alive[t - 1] & ~died[t - 1])
        died[t] = alive[t] & dies[t]
    names["rewards"] = np.where(alive, names["rewards"], np.nan).astype(np.float32)
    return names | {"alive": alive, "died": died, "done": done}


def team(rng: np.random.Generator) -> Names:
    return steps_of(rng, 4, 3) | {"team_rewards": floats(rng, 40, 4), "done": rng.random((40, 4)) < 0.1}


def reward_channels(rng: np.random.Generator) -> Names:
    """The second channel goes on over the ends of episodes."""
    constants = {"gammas": np.array([0.9, 0.97, 1.0], np.float32), "episodic": np.array([True, False, True])}
    return steps_of(rng, 4, 3) | {"done": rng.random((40, 4)) < 0.1, "weights": floats(rng, 3)} | constants


def agents_advantages(rng: np.random.Generator) -> Names:
    alive = mortal_agents(rng)["alive"]
    return {"advantages": floats(rng, *alive.shape) * np.array([1, 5, 0.1], np.float32) + np.float32(2), "alive": alive}


def q_learning(rng: np.random.Generator) -> Names:
    return plain(rng) | {"q_values": floats(rng, 41, 4, 5), "truncated": rng.random((40, 4)) < 0.1}


def off_policy(rng: np.random.Generator) -> Names:
    names = plain(rng)
    return names | {"q": floats(rng, 40, 4), "expected_q": floats(rng, 41, 4), "log_rhos": floats(rng, 40, 4)}


# References.


def live_rows(mask: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The positions of the chosen tokens of every sample that has any."""
    for sample, row in enumerate(mask):
        if row.any():
            yield sample, np.flatnonzero(row)


def of_samples(rewards, values, mask, terminated, last_values, gamma, lambda_, **_):
    """Every sample by itself, without the tokens that were not chosen."""
    advantages, targets = np.zeros(mask.shape), np.full(mask.shape, np.nan)
    lambda_ = np.broadcast_to(lambda_, mask.shape)
    for sample, rows in live_rows(mask):
        advantages[sample, rows], targets[sample, rows] = oracle(
            rewards[sample, rows],
            values[sample, rows],
            terminated[sample, rows],
            gamma=gamma,
            lambda_=lambda_[sample, rows],
            bootstrap_value=last_values[sample],
        )
    return {"advantages": advantages, "targets": targets}


def of_answers(finished, mask, **names):
    terminated = np.zeros_like(mask)
    for sample, rows in live_rows(mask):
        terminated[sample, rows[-1]] = finished[sample]
    return of_samples(mask=mask, terminated=terminated, **names)


def kl_rewards(mask, log_probs, ref_log_probs, scores, beta, **_):
    rewards = np.zeros(mask.shape)
    for sample, rows in live_rows(mask):
        rewards[sample, rows] = beta * (np.asarray(ref_log_probs, np.float64) - log_probs)[sample, rows]
        rewards[sample, rows[-1]] += scores[sample]
    return {"rewards": np.where(mask, rewards, np.nan)}


def of_sequences(rewards, values, cu_seqlens, gamma, lambda_):
    """Every sequence by itself; nothing of value follows its last token."""
    results = []
    for start, stop in itertools.pairwise(cu_seqlens):
        last = np.arange(start, stop) == stop - 1
        one = slice(start, stop)
        results.append(oracle(rewards[one], values[one], last, gamma=gamma, lambda_=lambda_, bootstrap_value=0.0))
    advantages, targets = (np.concatenate(x) for x in zip(*results, strict=True))
    return {"advantages": advantages, "targets": targets}


def of_segments(rewards, values, mask, segment_ids, gamma, lambda_, **_):
    """Every segment by itself, without the tokens that were not chosen."""
    advantages, targets = np.zeros(mask.shape), np.full(mask.shape, np.nan)
    for segment in range(1, 5):
        for sample, rows in live_rows(mask & (segment_ids == segment)):
            advantages[sample, rows], targets[sample, rows] = oracle(
                rewards[sample, rows],
                values[sample, rows],
                rows == rows[-1],
                gamma=gamma,
                lambda_=lambda_,
                bootstrap_value=0.0,
            )
    return {"advantages": advantages, "targets": targets}


def of_turns(rewards, values, mask, terminated, last_values, gamma, lambda_, **_):
    """A rollout of turns: the sum of what arrives before the next turn or the end, the value at their first token."""
    advantages = np.zeros(mask.shape)
    for sample, rows in live_rows(mask):
        turns = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
        end = np.argmax(terminated[sample]) if terminated[sample].any() else mask.shape[1] - 1
        bounds = [*(turn[0] for turn in turns), end + 1]
        of_turn, _ = oracle(
            [np.nansum(rewards[sample, i:j], dtype=np.float64) for i, j in itertools.pairwise(bounds)],
            [values[sample, turn[0]] for turn in turns],
            [terminated[sample, i:j].any() for i, j in itertools.pairwise(bounds)],
            gamma=gamma,
            lambda_=lambda_,
            bootstrap_value=last_values[sample],
        )
        for turn, advantage in zip(turns, of_turn, strict=True):
            advantages[sample, turn] = advantage
    return {"turn_advantages": advantages}


def spans(mask: np.ndarray, ends: np.ndarray) -> Iterator[tuple[Any, Any]]:
    """Each own step of one worker, and the row behind the last one that it answers for."""
    start = 0
    for stop in [*(np.flatnonzero(ends) + 1), len(mask)]:  # the episodes
        rows = start + np.flatnonzero(mask[start:stop])
        yield from itertools.pairwise([*rows, stop])
        start = stop


def moved(rewards, terminated, truncated, mask, **_):
    outputs = {name: np.zeros(mask.shape) for name in ("rewards", "terminated", "truncated")}
    for n in range(mask.shape[1]):
        for i, j in spans(mask[:, n], (terminated | truncated)[:, n]):
            outputs["rewards"][i, n] = np.nansum(rewards[i:j, n], dtype=np.float64)
            outputs["terminated"][i, n] = terminated[i:j, n].any()
            outputs["truncated"][i, n] = truncated[i:j, n].any()
    return outputs


def of_players(rewards, values, terminated, player, gamma, lambda_, **_):
    """Each player by itself: a rollout of its own moves, with all that arrives before its next one."""
    advantages, targets = np.zeros(rewards.shape), np.full(rewards.shape, np.nan)
    for n, p in np.ndindex(rewards.shape[1:]):
        steps = list(spans(player[:, n] == p, terminated[:, n]))
        rows = [i for i, _ in steps]
        advantages[rows, n, p], targets[rows, n, p] = oracle(
            [np.sum(rewards[i:j, n, p], dtype=np.float64) for i, j in steps],
            values[rows, n, p],
            [terminated[i:j, n].any() for i, j in steps],
            gamma=gamma,
            lambda_=lambda_,
            bootstrap_value=values[-1, n, p],
        )
    return {"advantages": advantages, "targets": targets}


def of_two_players(rewards, values, terminated, player, gamma, lambda_):
    """The whole rollout in the view of each player, of which each keeps the rows in which it moved."""
    results = {}
    for p in range(2):
        view = np.where(player == p, 1, -1)
        results[p] = oracle(view[:-1] * rewards, view * values, terminated, gamma=gamma, lambda_=lambda_)
    advantages, targets = (np.where(player[:-1] == 0, *both) for both in zip(results[0], results[1], strict=True))
    return {"advantages": advantages, "targets": targets}


def of_lengths(mask, lambda_, alpha, **names):
    lambda_ = [[max(0.0, 1 - 1 / (alpha * max(row.sum(), 1)))] for row in mask]
    return {"policy_advantages": of_samples(mask=mask, lambda_=lambda_, **names)["advantages"]}


def monte_carlo_returns(rewards, mask, terminated, last_values, gamma):
    """The discounted sum of the later rewards of the sample, and of the value behind it."""
    returns = np.full(mask.shape, np.nan)
    for sample, rows in live_rows(mask):
        rewards_left = [*rewards[sample, rows], 0.0 if terminated[sample, rows[-1]] else last_values[sample]]
        for i, row in enumerate(rows):
            returns[sample, row] = np.dot(
                gamma ** np.arange(len(rewards_left) - i), np.array(rewards_left[i:], np.float64)
            )
    return returns


def of_critic(rewards, mask, terminated, last_values, gamma, **_):
    return {"critic_targets": monte_carlo_returns(rewards, mask, terminated, last_values, gamma)}


def normalized_returns(rewards, mask, terminated, gamma, **_):
    returns = monte_carlo_returns(rewards, mask, terminated, np.zeros(len(mask)), gamma)
    return {"advantages": standardized(returns, mask, ddof=1)}


def standardized(x, mask, ddof=0):
    """Mean 0 and variance 1 over `mask`, and 0 elsewhere."""
    return np.where(mask, (x - np.mean(x[mask])) / np.std(x[mask], ddof=ddof), 0)


def of_whole_batch(mask, mesh, **names):
    outputs = of_samples(mask=mask, **names)
    return outputs | {"advantages": standardized(outputs["advantages"], mask)}


def of_mortal_agents(rewards, values, alive, died, done, gamma, lambda_, **_):
    ends = died | done[..., None]
    advantages, targets = oracle(rewards, values, ends, mask=alive, gamma=gamma, lambda_=lambda_)
    return {"advantages": advantages, "targets": np.where(alive, targets, np.nan)}


def of_team(team_rewards, values, done, gamma, lambda_, **_):
    each = [oracle(team_rewards, values[..., i], done, gamma=gamma, lambda_=lambda_) for i in range(3)]
    advantages, targets = (np.stack(x, axis=-1) for x in zip(*each, strict=True))
    return {"advantages": advantages, "targets": targets}


def of_channels(rewards, values, done, episodic, gammas, weights, lambda_, **_):
    ends = [done if x else np.zeros_like(done) for x in episodic]
    each = [oracle(rewards[..., k], values[..., k], ends[k], gamma=gammas[k], lambda_=lambda_)[0] for k in range(3)]
    return {"advantages": np.stack(each, axis=-1) @ np.asarray(weights, np.float64)}


def of_each_agent(advantages, alive):
    x = np.asarray(advantages, np.float64)
    return {"normalized": np.stack([standardized(x[..., i], alive[..., i]) for i in range(3)], axis=-1)}


def workers(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """The arrays [T, N], in float64 where they are floats, worker by worker."""
    for n in range(arrays[0].shape[1]):
        yield tuple(x[:, n] if x.dtype == bool else np.asarray(x[:, n], np.float64) for x in arrays)


def each_worker(fn: Callable[..., list[float]], *arrays: np.ndarray) -> np.ndarray:
    return np.stack([fn(*one) for one in workers(*arrays)], axis=1)


def rows_left(ends: np.ndarray, t: int) -> range:
    """Row t and the rows after it to the end of the episode, or of the rollout."""
    later = np.flatnonzero(ends[t:])
    return range(t, t + later[0] + 1 if len(later) else len(ends))


def returns_so_far(rewards: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The discounted sum of the rewards of the episode up to each row."""

    def one_worker(rewards, ends):
        starts = [0, *(np.flatnonzero(ends) + 1)]
        episodes = [range(max(x for x in starts if x <= t), t + 1) for t in range(len(rewards))]
        return [np.dot(rewards[list(rows)], GAMMA ** np.arange(len(rows))[::-1]) for rows in episodes]

    return each_worker(one_worker, rewards, ends)


def of_running_deviation(rewards, whole, **_):
    """The deviation of all returns of both rollouts, from their rewards."""
    returns = returns_so_far(*whole)
    return {"scaled": np.asarray(rewards, np.float64) / np.std(returns), "returns": returns[40:]}


def where_valued(rewards, values, terminated, has_value, gamma, lambda_):
    """The mean of the n-step returns that bootstrap from states with a value: the sum ends at each with 1 - λ."""

    def one_worker(rewards, values, ends, has_value):
        targets = []
        for t in range(len(rewards)):
            returns = n_step_returns(rewards, np.nan_to_num(values), ends, np.full(len(rewards), gamma), t)
            stops = np.where(has_value[t + 1 : t + 1 + len(returns)], 1 - lambda_, 0)
            stops[-1] = 1  # the end of the episode, or of the rollout
            targets.append(np.dot(stops * np.cumprod([1, *(1 - stops[:-1])]), returns))
        return targets

    targets = np.where(has_value[:-1], each_worker(one_worker, rewards, values, terminated, has_value), np.nan)
    return {"advantages": targets - values[:-1], "targets": targets, "keep": has_value[:-1].astype(float)}


def n_step_returns(rewards, values, ends, discounts, t):
    """The returns of 1, 2, ... steps from row t, each with the value behind it."""
    returns, total, discount = [], 0.0, 1.0
    for k in rows_left(ends, t):
        total += discount * rewards[k]
        discount *= discounts[k]
        returns.append(total + discount * (0.0 if ends[k] else values[k + 1]))
    return np.array(returns)


def lambda_returns(rewards, values, ends, discounts, lambda_):
    """The mean of the n-step returns with weights (1 - λ) λ^(n-1); the longest has the weight of all beyond it."""

    def one_worker(rewards, values, ends, discounts):
        targets = []
        for t in range(len(rewards)):
            returns = n_step_returns(rewards, values, ends, discounts, t)
            weights = (1 - lambda_) * lambda_ ** np.arange(len(returns))
            weights[-1] = lambda_ ** (len(returns) - 1)
            targets.append(np.dot(weights, returns))
        return targets

    return each_worker(one_worker, rewards, values, ends, discounts)


def with_renormalized_weights(rewards, values, terminated, gamma, lam, **_):
    """The mean of the n-step advantages with weights in proportion to λ^(n-1)."""

    def one_worker(rewards, values, ends):
        advantages = []
        for t in range(len(rewards)):
            returns = n_step_returns(rewards, values, ends, np.full(len(rewards), gamma), t)
            weights = lam ** np.arange(len(returns))
            advantages.append(np.dot(weights / weights.sum(), returns - values[t]))
        return advantages

    return {"advantages": each_worker(one_worker, rewards, values, terminated)}


def retrace(rewards, q, expected_q, terminated, log_rhos, gamma, lambda_, **_):
    """Munos et al., 2016, equation 4: Q plus the sum of later TD errors, each times the product of the c between."""

    def one_worker(rewards, q, expected_q, ends, log_rhos):
        c = lambda_ * np.minimum(1, np.exp(log_rhos))
        targets = []
        for t in range(len(rewards)):
            total, weight = q[t], 1.0
            for k in rows_left(ends, t):
                weight *= gamma * c[k] if k > t else 1.0
                total += weight * (rewards[k] + gamma * (0.0 if ends[k] else expected_q[k + 1]) - q[k])
            targets.append(total)
        return targets

    return {"targets": each_worker(one_worker, rewards, q, expected_q, terminated, log_rhos)}


def upgo(rewards, values, terminated, gamma, **_):
    """The rewards up to the first later step that does worse than its value, and the value there."""

    def one_worker(rewards, values, ends):
        following = np.where(ends, 0, values[1:])
        worse = rewards + gamma * following < values[:-1]
        targets = []
        for t in range(len(rewards)):
            total, discount = 0.0, 1.0
            for k in rows_left(ends, t):
                total += discount * rewards[k]
                discount *= gamma
                if ends[k] or k == len(rewards) - 1 or worse[k + 1]:
                    total += discount * following[k]
                    break
            targets.append(total)
        return targets

    targets = each_worker(one_worker, rewards, values, terminated)
    return {"advantages": targets - values[:-1], "targets": targets}


def peng(rewards, q_values, terminated, truncated, gamma, lambda_, **_):
    """Every part of an episode between dropped rows by itself; a dropped row has no target."""
    best = np.max(q_values, axis=-1)
    dropped = truncated & ~terminated
    targets = np.full(rewards.shape, np.nan)
    for n in range(rewards.shape[1]):
        for part in np.split(np.arange(len(rewards)), np.flatnonzero(dropped[:, n])):
            rows = part[~dropped[part, n]]  # a dropped row is the first of its part
            if len(rows):
                following = rows[-1] + 1  # the dropped row, or s_T: the value in it is known
                of_part = lambda_returns(
                    rewards[rows, n, None],
                    best[[*rows, following], n, None],
                    terminated[rows, n, None],
                    np.full((len(rows), 1), gamma),
                    lambda_,
                )
                targets[rows, n] = of_part[:, 0]
    return {"targets": targets, "keep": (~dropped).astype(float)}


def dreamer(rewards, values, continues, gamma, lambda_, **_):
    never = np.zeros(rewards.shape, bool)
    return {"targets": lambda_returns(rewards, values, never, gamma * np.asarray(continues, np.float64), lambda_)}


def average_reward(rewards, values, terminated, rho, lambda_, **_):
    targets = lambda_returns(np.asarray(rewards, np.float64) - rho, values, terminated, np.ones(rewards.shape), lambda_)
    return {"advantages": targets - values[:-1], "targets": targets}


def semi_markov(rewards, values, terminated, durations, gamma, lambda_, **_):
    targets = lambda_returns(rewards, values, terminated, gamma ** np.asarray(durations, np.float64), lambda_)
    return {"advantages": targets - values[:-1], "targets": targets}


RECIPES: dict[str, tuple[Callable[[np.random.Generator], Names], Callable[..., dict[str, np.ndarray]]]] = {
    "Prompt, tool and padding tokens": (token_batch, of_answers),
    "KL in the reward": (penalized_tokens, kl_rewards),
    "Packed sequences, by `cu_seqlens`": (packed_tokens, of_sequences),
    "Packed sequences, by segment ids": (packed_segments, of_segments),
    "One decay per turn": (tool_tokens, of_turns),
    "λ by length": (lambda rng: finished_tokens(rng) | {"alpha": 0.2}, of_lengths),
    "Another λ for the critic": (finished_tokens, of_critic),
    "Reward to go": (finished_tokens, normalized_returns),
    "Normalization over data and context axes at once": (split_tokens, of_whole_batch),
    "Rewards and ends of masked rows": (own_steps, moved),
    "Turn-based games of several players": (turn_based, of_players),
    "Two players of a zero-sum game": (zero_sum, of_two_players),
    "Agents that die": (mortal_agents, of_mortal_agents),
    "Team rewards": (team, of_team),
    "Reward channels": (reward_channels, of_channels),
    "Normalization of each agent": (agents_advantages, of_each_agent),
    "A state without a value": (unvalued_states, where_valued),
    "Reward scaling": (second_rollout, of_running_deviation),
    "Renormalized weights of a finite horizon": (lambda rng: plain(rng) | {"lam": LAMBDA}, with_renormalized_weights),
    "Retrace": (off_policy, retrace),
    "UPGO": (plain, upgo),
    "Peng's Q(λ)": (q_learning, peng),
    "Dreamer's λ-returns": (
        lambda rng: plain(rng) | {"continues": rng.uniform(0.5, 1, (40, 4)).astype(np.float32)},
        dreamer,
    ),
    "Average reward": (lambda rng: plain(rng) | {"rho": 0.3}, average_reward),
    "Semi-Markov decisions": (
        lambda rng: plain(rng) | {"durations": rng.uniform(0.5, 6, (40, 4)).astype(np.float32)},
        semi_markov,
    ),
}
