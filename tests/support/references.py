"""What each recipe of examples/guides/tokens.md computes: float64 NumPy, sums over later rows, no recursion.

`RECIPES` maps the heading of a recipe to a function from a random generator to the names that the recipe uses (and
others), to a function from those names to its outputs, and to a mistake: what is printed, and what stands there in
its place.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from support.oracle import oracle

Names = dict[str, Any]
NUMBERS = {"gamma": 0.97, "lambda_": 0.9}


class Recipe(NamedTuple):
    names: Callable[[np.random.Generator], Names]
    reference: Callable[..., Names]
    printed: str
    instead: str


# Inputs.


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def nan_outside(mask: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.where(mask, x, np.nan).astype(np.float32)


def tokens(rng: np.random.Generator) -> Names:
    """Samples with prompts, tool turns and padding, [N, S]; one sample without any chosen token; NaN in masked rows."""
    mask = np.zeros((8, 48), bool)
    for row in mask[1:]:
        bounds = np.minimum(np.cumsum(rng.integers(1, 9, size=9)), 48)  # prompt, turn, tool, turn, tool, turn, padding
        for start, stop in zip(bounds[0::2], bounds[1::2], strict=False):
            row[start:stop] = True
    rewards, values, c = floats(rng, 3, *mask.shape)
    rewards += np.float32(2) * (np.arange(48) > 24)  # the second half of the tokens has another mean
    log_probs, ref_log_probs = -np.abs(floats(rng, 2, *mask.shape))
    finished = rng.random(8) < 0.5
    finished[1:3] = True, False
    names = {"rewards": nan_outside(mask, rewards), "values": nan_outside(mask, values), "mask": mask}
    names |= {"finished": finished, "terminated": at_last_tokens(mask, finished), "last": at_last_tokens(mask, True)}
    names |= {"log_probs": log_probs, "ref_log_probs": ref_log_probs, "c": c, "scores": floats(rng, 8)}
    names |= {"last_values": floats(rng, 8), "lengths": rng.integers(1, 49, 8).astype(np.int32)}
    names["segment_ids"] = np.sort(rng.integers(1, 5, mask.shape), axis=1).astype(np.int32)
    mesh = Mesh(np.reshape(jax.devices()[:8], (2, 4)), ("dp", "cp"))
    return NUMBERS | names | {"alpha": 0.2, "beta": 0.05, "turn_gamma": 0.8, "mesh": mesh}


def at_last_tokens(mask: np.ndarray, flags: np.ndarray | bool) -> np.ndarray:
    """The flag of each sample at its last chosen token, False elsewhere."""
    result, flags = np.zeros_like(mask), np.broadcast_to(flags, len(mask))
    for sample in np.flatnonzero(mask.any(axis=1)):
        result[sample, np.flatnonzero(mask[sample])[-1]] = flags[sample]
    return result


def tool_tokens(rng: np.random.Generator) -> Names:
    """Rewards also on the prompt, on the tool's tokens and after the end; some ends are on a tool's token."""
    names = tokens(rng)
    arrived, ends = nan_outside(rng.random((8, 48)) < 0.7, floats(rng, 8, 48)), np.zeros((8, 48), bool)
    for sample, row in np.argwhere(names["terminated"]):
        ends[sample, min(row + rng.integers(3), 47)] = True
    return names | {"rewards": np.where(names["mask"], names["rewards"], arrived), "terminated": ends}


def packed_tokens(rng: np.random.Generator) -> Names:
    starts = np.sort(rng.choice(np.arange(1, 50), size=6, replace=False))
    rewards, values = floats(rng, 2, 50)
    return NUMBERS | {"rewards": rewards, "values": values, "cu_seqlens": np.array([0, *starts, 50], np.int32)}


def steps(rng: np.random.Generator) -> Names:
    """Rollouts [T, N] of several episodes."""
    terminated, truncated, mask = rng.random((3, 40, 4)) < np.reshape([0.1, 0.1, 0.5], (3, 1, 1))
    rewards, final_values, q, final_q, log_rhos = floats(rng, 5, 40, 4)
    values, expected_q = floats(rng, 2, 41, 4)
    names = {"rewards": rewards, "values": values, "terminated": terminated, "truncated": truncated & ~terminated}
    names |= {"q": q, "final_q": final_q, "expected_q": expected_q, "log_rhos": log_rhos}
    names |= {"final_values": final_values, "mask": mask, "player": rng.integers(2, size=(41, 4)).astype(np.int32)}
    names |= {"lengths": np.array([40, 7, 1, 23], np.int32), "p": rng.uniform(0, 0.5, (40, 4)).astype(np.float32)}
    names |= {"q_values": floats(rng, 41, 4, 5), "has_value": rng.random((41, 4)) < 0.7}
    names["has_value"][-1] = True
    return NUMBERS | names | {"lam": 0.9, "rho": 0.3, "mean": 3.0, "deviation": 2.0, "time_axis": 0}


def unvalued_states(rng: np.random.Generator) -> Names:
    names = steps(rng)
    return names | {"values": nan_outside(names["has_value"], names["values"])}


def agents(rng: np.random.Generator) -> Names:
    """Three agents, players or channels; agents die at random, and live again after the end of the episode."""
    done, alive, died = rng.random((40, 4)) < 0.1, np.ones((40, 4, 3), bool), rng.random((40, 4, 3)) < 0.08
    for t in range(1, 40):
        alive[t] = done[t - 1, :, None] | (alive[t - 1] & ~died[t - 1])
    names = {"rewards": floats(rng, 40, 4, 3), "values": floats(rng, 41, 4, 3), "team_rewards": floats(rng, 40, 4)}
    names |= {"done": done, "terminated": done, "alive": alive, "died": alive & died, "weights": floats(rng, 3)}
    names |= {"gammas": np.array([0.9, 0.97, 1.0], np.float32), "episodic": np.array([True, False, True])}
    return NUMBERS | names | {"player": rng.integers(3, size=(40, 4)).astype(np.int32)}


def chunks(rng: np.random.Generator) -> Names:
    """Decisions of up to five steps; what follows an end within a chunk is NaN."""
    ends = rng.random((40, 5, 4)) < 0.1
    rewards = nan_outside(np.cumsum(ends, axis=1) - ends == 0, floats(rng, 40, 5, 4))
    return NUMBERS | {"rewards": rewards, "values": floats(rng, 41, 4), "ends": ends}


def second_rollout(rng: np.random.Generator) -> Names:
    """A rollout, and the carry of the rollout before it, whose rewards are kept for the reference."""
    rewards, ends = 5 * floats(rng, 80, 4) + np.float32(2), rng.random((80, 4)) < 0.1
    earlier = returns_so_far(rewards, ends)[:40]
    moments = (np.asarray(x, np.float32) for x in (earlier.size, earlier.mean(), earlier.var()))
    carry = (np.where(ends[39], 0, earlier[-1]).astype(np.float32), *moments)
    return NUMBERS | {"rewards": rewards[40:], "ends": ends[40:], "carry": carry, "whole": (rewards, ends)}


# References: language models.


def outputs(advantages, targets, mask: Any = True):
    """The target of a masked row is not part of the definition."""
    return {"advantages": advantages, "targets": np.where(mask, targets, np.nan)}


def of_tokens(rewards, values, mask, terminated, last_values, gamma, lambda_, **_):
    """Every sample by itself, without the tokens that were not chosen."""
    how = {"gamma": gamma, "lambda_": np.transpose(lambda_), "bootstrap_value": last_values}
    advantages, targets = oracle(rewards.T, values.T, terminated.T, mask=mask.T, **how)
    return outputs(advantages.T, targets.T, mask)


def before_each_token(c, lengths, **_):
    last_values = np.array([row[n - 1] for row, n in zip(c, lengths, strict=True)])
    return {"values": np.array([[0, *row[:-1]] for row in c]), "last_values": last_values}


def kl_rewards(mask, last, log_probs, ref_log_probs, scores, beta, **_):
    rewards = beta * (np.float64(ref_log_probs) - log_probs)
    for sample, row in np.argwhere(last):
        rewards[sample, row] += scores[sample]
    return {"rewards": np.where(mask, rewards, np.nan)}


def of_sequences(rewards, values, cu_seqlens, **numbers):
    """Every sequence by itself; nothing of value follows its last token."""
    rows = [np.arange(*bounds) for bounds in itertools.pairwise(cu_seqlens)]
    results = [oracle(rewards[i], values[i], 0 * i, bootstrap_value=0.0, **numbers) for i in rows]
    advantages, targets = np.concatenate([np.stack(x) for x in results], axis=1)
    return outputs(advantages, targets)


def of_segments(mask, segment_ids, **names):
    """Every segment by itself: a sum of results that are 0 outside the segment."""
    names |= {"last_values": np.zeros(8)}
    each = [mask & (segment_ids == i) for i in range(1, 5)]
    results = [of_tokens(**names | {"mask": x, "terminated": at_last_tokens(x, True)}) for x in each]
    return {name: np.where(mask, sum(np.nan_to_num(x[name]) for x in results), np.nan) for name in results[0]}


def of_padded_segments(rewards, values, terminated, lengths, gamma, lambda_, **_):
    """Each alone, without the padding."""
    advantages, targets = np.zeros(rewards.shape), np.zeros(rewards.shape)
    for n, k in enumerate(lengths):
        one = oracle(rewards[:k, n], values[: k + 1, n], terminated[:k, n], gamma=gamma, lambda_=lambda_)
        advantages[:k, n], targets[:k, n] = one
    return outputs(advantages, targets, np.arange(len(rewards))[:, None] < lengths)


def spans(mask: np.ndarray, ends: np.ndarray) -> Iterator[tuple[Any, Any]]:
    """Each own step of one worker, and the row behind the last one that it answers for."""
    start = 0
    for stop in [*(np.flatnonzero(ends) + 1), len(mask)]:  # the episodes
        yield from itertools.pairwise([*(start + np.flatnonzero(mask[start:stop])), stop])
        start = stop


def arrived(x: np.ndarray, mask: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The sum of x [T, N] over the rows that each own step answers for."""
    sums = np.zeros(mask.shape)
    for n in range(mask.shape[1]):
        for i, j in spans(mask[:, n], ends[:, n]):
            sums[i, n] = np.nansum(x[i:j, n], dtype=np.float64)
    return sums


def of_turns(rewards, values, mask, terminated, **names):
    """A rollout of turns: the sum of what arrives before the next turn or the end, the value at their first token."""
    first = mask & ~np.pad(mask, ((0, 0), (1, 0)))[:, :-1]
    rewards, ends = (arrived(x.T, first.T, terminated.T).T for x in (rewards, terminated))
    of_first = of_tokens(rewards, values, first, ends > 0, **names)["advantages"]
    turn = np.cumsum(first, axis=1)
    same = (turn[:, :, None] == turn[:, None]) & first[:, None]  # the first token of the turn of each token
    return {"turn_advantages": np.where(mask, (same * of_first[:, None]).sum(axis=2), 0)}


def of_two_levels(rewards, values, mask, gamma, lambda_, turn_gamma, **names):
    """The last token of a turn has the advantage over turns; the tokens before it, the sum of the turn's TD errors."""
    last = mask & ~np.pad(mask, ((0, 0), (0, 1)))[:, 1:]
    over_turns = of_tokens(rewards, values, last, gamma=turn_gamma, lambda_=lambda_, **names)["advantages"]
    advantages, rewards, values = np.zeros(mask.shape), rewards.astype(float), values.astype(float)
    for n, token in np.argwhere(mask):
        end = token + np.argmax(last[n, token:])
        deltas = rewards[n, token:end] + gamma * values[n, token + 1 : end + 1] - values[n, token:end]
        advantages[n, token] = np.dot((gamma * lambda_) ** np.arange(end - token + 1), [*deltas, over_turns[n, end]])
    return outputs(advantages, advantages + values, mask)


def of_lengths(mask, alpha, lambda_, **names):
    by_length = np.array([[max(0.0, 1 - 1 / (alpha * max(row.sum(), 1)))] for row in mask])
    policy, critic = of_tokens(mask=mask, lambda_=by_length, **names), of_tokens(mask=mask, lambda_=1.0, **names)
    return {"policy_advantages": policy["advantages"], "critic_targets": critic["targets"]}


def normalized_returns(rewards, mask, gamma, **_):
    """The discounted sum of the later rewards of the sample."""
    returns = np.full(mask.shape, np.nan)
    for sample, row in np.argwhere(mask):
        later = rewards[sample, row:][mask[sample, row:]].astype(float)
        returns[sample, row] = np.dot(gamma ** np.arange(len(later)), later)
    return {"advantages": standardized(returns, mask, ddof=1)}


def standardized(x, mask, ddof=0):
    """Mean 0 and variance 1 over `mask`, and 0 elsewhere."""
    return np.where(mask, (x - np.mean(x[mask])) / np.std(x[mask], ddof=ddof), 0)


def of_whole_batch(**names):
    results = of_tokens(**names)
    return results | {"advantages": standardized(results["advantages"], names["mask"])}


# References: players, agents and several rewards.


def moved(terminated, truncated, mask, **names):
    arrays = {name: names[name] for name in ("rewards", "final_values")} | {"terminated": terminated}
    arrays |= {"truncated": truncated, "final_values": np.where(truncated, arrays["final_values"], 0)}
    return {name: arrived(x, mask, terminated | truncated) for name, x in arrays.items()}


def of_players(rewards, values, terminated, player, gamma, lambda_, **_):
    """Each player is alone with its own moves, and with all that arrives before its next one."""
    own = player[..., None] == np.arange(3)
    own_rewards = [arrived(rewards[..., p], own[..., p], terminated) for p in range(3)]
    ends = [arrived(terminated, own[..., p], terminated) for p in range(3)]
    arrays = np.stack(own_rewards, axis=-1), values, np.stack(ends, axis=-1)
    return outputs(*oracle(*arrays, mask=own, gamma=gamma, lambda_=lambda_), own)


def of_two_players(rewards, values, terminated, player, gamma, lambda_, **_):
    """The whole rollout in the view of each player, of which each keeps the rows in which it moved."""
    views = [np.where(player == p, 1, -1) for p in range(2)]
    both = [oracle(view[:-1] * rewards, view * values, terminated, gamma=gamma, lambda_=lambda_) for view in views]
    return outputs(*(np.where(player[:-1] == 0, *each) for each in zip(*both, strict=True)))


def of_mortal_agents(rewards, values, alive, died, done, gamma, lambda_, **_):
    advantages, targets = oracle(rewards, values, died | done[..., None], mask=alive, gamma=gamma, lambda_=lambda_)
    normalized = [standardized(advantages[..., i], alive[..., i]) for i in range(3)]
    return outputs(advantages, targets, alive) | {"normalized": np.stack(normalized, axis=-1)}


def of_team(team_rewards, values, done, gamma, lambda_, **_):
    each = [oracle(team_rewards, values[..., i], done, gamma=gamma, lambda_=lambda_) for i in range(3)]
    return outputs(*(np.stack(x, axis=-1) for x in zip(*each, strict=True)))


def of_channels(rewards, values, done, episodic, gammas, weights, lambda_, **_):
    ends = [done & x for x in episodic]
    each = [oracle(rewards[..., k], values[..., k], ends[k], gamma=gammas[k], lambda_=lambda_)[0] for k in range(3)]
    return {"advantages": np.stack(each, axis=-1) @ np.float64(weights)}


# References: means of n-step returns, and other estimators.


def each_worker(fn: Callable[..., list[float]], *arrays: np.ndarray) -> np.ndarray:
    """Calls `fn` with the columns of the arrays [T, N], in float64 where they are floats."""
    wide = [x if x.dtype == bool else x.astype(float) for x in arrays]
    return np.stack([fn(*(x[:, n] for x in wide)) for n in range(arrays[0].shape[1])], axis=1)


def rows_left(ends: np.ndarray, t: int) -> np.ndarray:
    """Row t and the rows after it to the end of the episode, or of the rollout."""
    later = np.flatnonzero(ends[t:])
    return np.arange(t, t + later[0] + 1 if len(later) else len(ends))


def behind_each_row(values, terminated, truncated=False, final_values=0.0):
    """The value that the row bootstraps from, if the sum ends there."""
    return np.where(terminated, 0, np.where(truncated, final_values, values[1:]))


def mean_of_returns(weights_of, rewards, behind, ends, gamma):
    """The mean of the returns of 1, 2, ... steps from row t with `weights_of(rows, worker)`."""

    def one_worker(rewards, behind, ends, gamma, workers):
        targets = []
        for t in range(len(rewards)):
            rows = rows_left(ends, t)
            discounts = np.cumprod([1, *gamma[rows]])
            returns = np.cumsum(discounts[:-1] * rewards[rows]) + discounts[1:] * behind[rows]
            targets.append(np.dot(weights_of(rows, int(workers[0])), returns))
        return targets

    gamma, workers = (np.broadcast_to(x, rewards.shape) for x in (gamma, np.arange(rewards.shape[1])))
    return each_worker(one_worker, rewards, behind, ends, gamma, workers)


def lambda_weights(lambda_):
    """(1 - λ) λ^(n-1); the longest return has the weight of all beyond it."""
    return lambda rows, _: lambda_ ** np.arange(len(rows)) * np.where(rows == rows[-1], 1, 1 - lambda_)


def lambda_returns(rewards, values, terminated, gamma, lambda_):
    behind = behind_each_row(values, terminated)
    targets = mean_of_returns(lambda_weights(lambda_), rewards, behind, terminated, gamma)
    return outputs(targets - values[:-1], targets)


def of_chunks(rewards, values, ends, gamma, lambda_):
    """Each decision lasts to the first end within its chunk."""
    sums, durations = np.zeros((2, 40, 4))
    for t, n in np.ndindex(40, 4):
        rows = rows_left(ends[t, :, n], 0)
        sums[t, n], durations[t, n] = np.dot(gamma**rows, rewards[t, rows, n]), len(rows)
    return lambda_returns(sums, values, ends.any(axis=1), gamma**durations, lambda_)


def where_valued(rewards, values, terminated, has_value, gamma, lambda_, **_):
    """The mean of the n-step returns that bootstrap from states with a value: the sum ends at each with 1 - λ."""

    def weights(rows, n):
        stops = np.where(has_value[rows + 1, n], 1 - lambda_, 0)
        stops[-1] = 1  # the end of the episode, or of the rollout
        return stops * np.cumprod([1, *(1 - stops[:-1])])

    behind = behind_each_row(np.nan_to_num(values), terminated)
    targets = np.where(has_value[:-1], mean_of_returns(weights, rewards, behind, terminated, gamma), np.nan)
    return outputs(targets - values[:-1], targets) | {"keep": has_value[:-1].astype(float)}


def with_normalized_values(rewards, values, mean, deviation, terminated, gamma, lambda_, **_):
    results = lambda_returns(rewards, mean + deviation * np.float64(values), terminated, gamma, lambda_)
    return results | {"normalized_targets": (results["targets"] - mean) / deviation}


def returns_so_far(rewards: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The discounted sum of the rewards of the episode up to each row."""

    def one_worker(rewards, ends):
        starts = [0, *(np.flatnonzero(ends) + 1)]
        episodes = [np.arange(max(x for x in starts if x <= t), t + 1) for t in range(len(rewards))]
        return [np.dot(rewards[rows], NUMBERS["gamma"] ** (rows[-1] - rows)) for rows in episodes]

    return each_worker(one_worker, rewards, ends)


def of_running_deviation(rewards, whole, **_):
    """The deviation of all returns of both rollouts, from their rewards."""
    returns = returns_so_far(*whole)
    return {"scaled": np.float64(rewards) / np.std(returns), "returns": returns[40:]}


def of_probabilities(rewards, values, p, gamma, lambda_, **_):
    return lambda_returns(rewards, values, np.zeros(p.shape, bool), gamma * (1 - np.float64(p)), lambda_)


def peng(rewards, q_values, terminated, truncated, gamma, lambda_, **_):
    """The sum of an episode ends before a dropped row, with the value in it; a dropped row has no target."""
    best, ends = np.max(q_values, axis=-1), terminated | np.pad(truncated, ((0, 1), (0, 0)))[1:]
    targets = mean_of_returns(lambda_weights(lambda_), rewards, behind_each_row(best, terminated), ends, gamma)
    return {"targets": np.where(truncated, np.nan, targets), "keep": (~truncated).astype(float)}


def retrace(rewards, q, expected_q, final_q, terminated, truncated, log_rhos, gamma, lambda_, **_):
    """Munos et al., 2016, equation 4: Q plus the sum of later TD errors, each times the product of the c between."""

    def one_worker(delta, q, ends, c):
        rows_of = [rows_left(ends, t) for t in range(len(q))]
        return [q[rows[0]] + np.dot(np.cumprod([1, *(gamma * c[rows[1:]])]), delta[rows]) for rows in rows_of]

    delta = np.float64(rewards) + gamma * behind_each_row(expected_q, terminated, truncated, final_q) - q
    c = lambda_ * np.minimum(1, np.exp(np.float64(log_rhos)))
    return {"targets": each_worker(one_worker, delta, q, terminated | truncated, c)}


def upgo(rewards, values, terminated, gamma, **_):
    """The return up to the first later step that does worse than its value, with the value of the state before it."""
    behind = behind_each_row(values, terminated)
    worse = np.float64(rewards) + gamma * behind < values[:-1]

    def weights(rows, n):
        stop = next((i for i, row in enumerate(rows[1:]) if worse[row, n]), len(rows) - 1)
        return np.arange(len(rows)) == stop

    targets = mean_of_returns(weights, rewards, behind, terminated, gamma)
    return outputs(targets - values[:-1], targets)


def average_reward(rewards, values, terminated, rho, lambda_, **_):
    return lambda_returns(np.float64(rewards) - rho, values, terminated, 1.0, lambda_)


def with_renormalized_weights(rewards, values, terminated, truncated, final_values, gamma, lam, **_):
    """The mean of the n-step advantages with weights in proportion to λ^(n-1)."""
    behind = behind_each_row(values, terminated, truncated, final_values)
    powers = [lam ** np.arange(n) / np.sum(lam ** np.arange(n)) for n in range(len(rewards) + 1)]
    return {"targets": mean_of_returns(lambda i, _: powers[len(i)], rewards, behind, terminated | truncated, gamma)}


FINITE = "jnp.where(mask | jnp.isfinite(rewards), rewards, 0)"
TABLE = {
    "Prompt, tool and padding tokens": (tokens, of_tokens, "last & finished[:, None]", "last"),
    "Values after the token": (tokens, before_each_token, "lengths[:, None] - 1", "lengths[:, None] - 2"),
    "KL in the reward": (tokens, kl_rewards, "-beta * kl", "beta * kl"),
    "Packed sequences, by `cu_seqlens`": (packed_tokens, of_sequences, "cu_seqlens[1:] - 1", "cu_seqlens[:-1]"),
    "Packed sequences, by segment ids": (tokens, of_segments, "(mask, segment_ids,", "(mask | True, segment_ids,"),
    "Padded segments, some of them cut": (steps, of_padded_segments, "values[lengths,", "values[lengths - 1,"),
    "One decay per turn": (tool_tokens, of_turns, FINITE, "jnp.where(mask, rewards, 0)"),
    "Two levels: turns and their tokens": (tokens, of_two_levels, "last, mask=mask", "terminated, mask=mask"),
    "λ by length, and another λ for the critic": (tokens, of_lengths, "alpha * lengths", "lengths"),
    "Reward to go": (tokens, normalized_returns, ", ddof=1", ""),
    "Data and context axes": (tokens, of_whole_batch, '("dp", "cp")', '"dp"'),
    "Rewards and ends of masked rows": (steps, moved, ", -1, axis=time_axis)", ", 0, axis=time_axis)"),
    "Turn-based games of several players": (agents, of_players, "gae(own_rewards", "gae(rewards"),
    "Two players of a zero-sum game": (steps, of_two_players, "jnp.where(same, gamma, -gamma)", "gamma"),
    "Agents that die": (agents, of_mortal_agents, "mask=alive, ", ""),
    "Team rewards": (agents, of_team, "jnp.broadcast_to(done[..., None], shape)", "False"),
    "Reward channels": (agents, of_channels, "done[..., None] &", "done[..., None] |"),
    "Decisions of several steps": (chunks, of_chunks, "(ends[:, :-1], ((0, 0), (1, 0), (0, 0)))", "(ends, 0)"),
    "A state without a value": (unvalued_states, where_valued, "lambda_=lambdas", "lambda_=lambda_"),
    "Normalized values": (steps, with_normalized_values, "mean + deviation * values", "values"),
    "Reward scaling": (second_rollout, of_running_deviation, "(ends[:-1], ((1, 0), (0, 0)))", "(ends, 0)"),
    "Ends that are probabilities, and Dreamer's λ-returns": (steps, of_probabilities, "gamma * (1 - p)", "gamma"),
    "Peng's Q(λ)": (steps, peng, "q_values.max(axis=-1)", "q_values.mean(axis=-1)"),
    "Retrace": (steps, retrace, "terminated | truncated", "terminated, truncated"),
    "UPGO": (steps, upgo, ", -1, axis=0)", ", 0, axis=0)"),
    "Average reward": (steps, average_reward, "rewards - rho", "rewards"),
    "Renormalized weights of a finite horizon": (
        steps,
        with_renormalized_weights,
        "terminated | truncated",
        "terminated",
    ),
}
RECIPES = {heading: Recipe(*row) for heading, row in TABLE.items()}
