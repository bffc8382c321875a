"""What each recipe of examples/guides/tokens.md computes: float64 NumPy, sums over later rows.

`RECIPES` maps the heading of a recipe to a function from a random generator to the names that the recipe uses (and
others), to a function from those names to its outputs, and to a mistake: what is printed, and what stands there in
its place.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from support.oracle import oracle, standardized

Names = dict[str, Any]
NUMBERS = {"gamma": 0.97, "lambda_": 0.9}


class Recipe(NamedTuple):
    names: Callable[[np.random.Generator], Names]
    reference: Callable[[Any], Names]  # of a namespace
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
    result = np.zeros_like(mask)
    for last, chosen in zip(result, mask, strict=True):
        last[np.flatnonzero(chosen)[-1:]] = True
    return result & np.reshape(flags, (-1, 1))


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
    earlier = running_returns(rewards, ends)[:40]
    carry = np.where(ends[39], 0, earlier[-1]), earlier.size, earlier.mean(), earlier.var()
    carry = tuple(np.asarray(x, np.float32) for x in carry)
    return NUMBERS | {"rewards": rewards[40:], "ends": ends[40:], "carry": carry, "whole": (rewards, ends)}


# GAE of arguments that the recipe makes: `x` has the names, `changes` are the arguments that are not among them.


def definition(x: Any, **changes: Any) -> Names:
    """The target of a masked row is not part of the definition."""
    names, given = ("rewards", "values", "terminated", "gamma", "lambda_"), vars(x) | changes
    advantages, targets = oracle(**{name: given[name] for name in names} | changes)
    return {"advantages": advantages, "targets": np.where(changes.get("mask", True), targets, np.nan)}


def of_tokens(x, **changes):
    """Of samples [N, S], without the tokens that were not chosen."""
    arguments = ("rewards", "values", "terminated", "mask", "lambda_")
    arrays = {name: np.transpose(changes.pop(name, vars(x)[name])) for name in arguments}
    results = definition(x, **arrays | {"bootstrap_value": x.last_values} | changes)
    return {name: result.T for name, result in results.items()}


def of_sequences(x):
    """Every sequence by itself; nothing of value follows its last token."""
    rows = [np.arange(*bounds) for bounds in itertools.pairwise(x.cu_seqlens)]
    each = [oracle(x.rewards[i], x.values[i], 0 * i, bootstrap_value=0.0, **NUMBERS) for i in rows]
    return dict(zip(("advantages", "targets"), np.concatenate([np.stack(one) for one in each], axis=1), strict=True))


def of_segments(x):
    """Every segment by itself: a sum of results that are 0 outside the segment."""
    masks = [x.mask & (x.segment_ids == i) for i in range(1, 5)]
    each = [of_tokens(x, mask=m, terminated=at_last_tokens(m, True), bootstrap_value=np.zeros(8)) for m in masks]
    return {k: np.where(x.mask, sum(np.nan_to_num(one[k]) for one in each), np.nan) for k in each[0]}


def of_padded_segments(x):
    """Each alone, without the padding."""
    results = {"advantages": np.zeros(x.rewards.shape), "targets": np.full(x.rewards.shape, np.nan)}
    for n, k in enumerate(x.lengths):
        arrays = {"rewards": x.rewards[:k, n], "values": x.values[: k + 1, n], "terminated": x.terminated[:k, n]}
        for name, one in definition(x, **arrays).items():
            results[name][:k, n] = one
    return results


def arrived(x: np.ndarray, mask: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The sum of x [T, N] over each own step and the rows behind it, before the next one in the same episode."""
    sums = np.zeros(mask.shape)
    for n in range(mask.shape[1]):
        own = None
        for t in range(len(mask)):
            own = t if mask[t, n] else own
            if own is not None:
                sums[own, n] += np.nan_to_num(x[t, n])
            own = None if ends[t, n] else own
    return sums


def moved(x):
    """Final values count where the row is truncated."""
    arrays = {"rewards": x.rewards, "terminated": x.terminated, "truncated": x.truncated}
    arrays["final_values"] = np.where(x.truncated, x.final_values, 0)
    return {name: arrived(array, x.mask, x.terminated | x.truncated) for name, array in arrays.items()}


def of_turns(x):
    """A rollout of turns: the sum of what arrives before the next turn or the end, the value at their first token."""
    first = x.mask & ~np.pad(x.mask, ((0, 0), (1, 0)))[:, :-1]
    rewards, ends = (arrived(array.T, first.T, x.terminated.T).T for array in (x.rewards, x.terminated))
    of_first = of_tokens(x, rewards=rewards, terminated=ends, mask=first)["advantages"]
    results = np.zeros(x.mask.shape)
    for n, token in np.argwhere(x.mask):
        results[n, token] = of_first[n, np.flatnonzero(first[n, : token + 1])[-1]]
    return {"turn_advantages": results}


def of_two_levels(x):
    """The last token of a turn has the advantage over turns; the tokens before it, the sum of the turn's TD errors."""
    last = x.mask & ~np.pad(x.mask, ((0, 0), (0, 1)))[:, 1:]
    over_turns = of_tokens(x, mask=last, gamma=x.turn_gamma)["advantages"]
    advantages, rewards, values = np.zeros(last.shape), x.rewards.astype(float), x.values.astype(float)
    for n, token in np.argwhere(x.mask):
        end = token + np.argmax(last[n, token:])
        deltas = rewards[n, token:end] + x.gamma * values[n, token + 1 : end + 1] - values[n, token:end]
        powers = (x.gamma * x.lambda_) ** np.arange(end - token + 1)
        advantages[n, token] = np.dot(powers, [*deltas, over_turns[n, end]])
    return {"advantages": advantages, "targets": advantages + values}


def of_lengths(x):
    by_length = [[max(0.0, 1 - 1 / (x.alpha * max(row.sum(), 1)))] for row in x.mask]
    policy, critic = of_tokens(x, lambda_=by_length), of_tokens(x, lambda_=1.0)
    return {"policy_advantages": policy["advantages"], "critic_targets": critic["targets"]}


def normalized_returns(x):
    returns = of_tokens(x, values=np.zeros(x.mask.shape), lambda_=1.0, bootstrap_value=np.zeros(8))["advantages"]
    return {"advantages": standardized(returns, x.mask, ddof=1)}


def of_whole_batch(x):
    results = of_tokens(x)
    return results | {"advantages": standardized(results["advantages"], x.mask)}


def of_players(x):
    """Each player is alone with its own moves, and with all that arrives before its next one."""
    own = x.player[..., None] == np.arange(3)
    rewards = [arrived(x.rewards[..., p], own[..., p], x.terminated) for p in range(3)]
    ends = [arrived(x.terminated, own[..., p], x.terminated) for p in range(3)]
    return definition(x, rewards=np.stack(rewards, -1), terminated=np.stack(ends, -1), mask=own)


def of_two_players(x):
    """The whole rollout in the view of each player, of which each keeps the rows in which it moved."""
    views = [np.where(x.player == p, 1, -1) for p in range(2)]
    first, second = (definition(x, rewards=view[:-1] * x.rewards, values=view * x.values) for view in views)
    return {name: np.where(x.player[:-1] == 0, first[name], second[name]) for name in first}


def of_mortal_agents(x):
    results = definition(x, terminated=x.died | x.done[..., None], mask=x.alive)
    normalized = [standardized(results["advantages"][..., i], x.alive[..., i]) for i in range(3)]
    return results | {"normalized": np.stack(normalized, axis=-1)}


def of_team(x):
    return definition(x, rewards=np.stack([x.team_rewards] * 3, axis=-1), terminated=np.stack([x.done] * 3, axis=-1))


def of_channels(x):
    ends = np.stack([x.done & episodic for episodic in x.episodic], axis=-1)
    return {"advantages": definition(x, terminated=ends, gamma=x.gammas)["advantages"] @ np.float64(x.weights)}


def of_chunks(x):
    """Each decision lasts to the first end within its chunk."""
    sums, durations = np.zeros((2, 40, 4))
    for t, n in np.ndindex(40, 4):
        steps = rows_left(x.ends[t], 0, n)
        sums[t, n], durations[t, n] = np.dot(x.gamma**steps, x.rewards[t, steps, n]), len(steps)
    return definition(x, rewards=sums, terminated=x.ends.any(axis=1), gamma=x.gamma**durations)


def with_normalized_values(x):
    results = definition(x, values=x.mean + x.deviation * np.float64(x.values))
    return results | {"normalized_targets": (results["targets"] - x.mean) / x.deviation}


def of_probabilities(x):
    return definition(x, terminated=x.p < 0, gamma=x.gamma * (1 - np.float64(x.p)))


def average_reward(x):
    return definition(x, rewards=np.float64(x.rewards) - x.rho, gamma=1.0)


def peng(x):
    """A dropped row has no target."""
    targets = definition(x, values=np.max(x.q_values, axis=-1), truncated=x.truncated)["targets"]
    return {"targets": np.where(x.truncated, np.nan, targets), "keep": (~x.truncated).astype(float)}


# Other definitions.


def before_each_token(x):
    last_values = np.array([row[n - 1] for row, n in zip(x.c, x.lengths, strict=True)])
    return {"values": np.array([[0, *row[:-1]] for row in x.c]), "last_values": last_values}


def kl_rewards(x):
    rewards = x.beta * (np.float64(x.ref_log_probs) - x.log_probs)
    for sample, row in np.argwhere(x.last):
        rewards[sample, row] += x.scores[sample]
    return {"rewards": np.where(x.mask, rewards, np.nan)}


def running_returns(rewards: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The discounted sum of the rewards of the episode up to each row."""
    returns, before = [], np.zeros(rewards.shape[1:])
    for reward, end in zip(rewards, ends, strict=True):
        returns.append(reward + NUMBERS["gamma"] * before)
        before = np.where(end, 0, returns[-1])
    return np.stack(returns)


def of_running_deviation(x):
    """The deviation of all returns of both rollouts, from their rewards."""
    returns = running_returns(*x.whole)
    return {"scaled": np.float64(x.rewards) / np.std(returns), "returns": returns[40:]}


def rows_left(ends: np.ndarray, t: int, n: int) -> np.ndarray:
    """Row t and the rows after it to the end of the episode of worker n, or of the rollout."""
    later = np.flatnonzero(ends[t:, n])
    return np.arange(t, t + later[0] + 1 if len(later) else len(ends))


def for_each_row(of_rows: Callable[[np.ndarray, int], float], ends: np.ndarray) -> np.ndarray:
    """`of_rows(rows, worker)` for the rows that are left from each row on."""
    steps, workers = ends.shape
    return np.array([[of_rows(rows_left(ends, t, n), n) for n in range(workers)] for t in range(steps)])


def mean_of_returns(weights_of, x, values=None, truncated=False):
    """The mean of the returns of 1, 2, ... steps from each row, with `weights_of(rows, worker)`."""
    following = np.where(truncated, x.final_values, x.values[1:] if values is None else values[1:])
    following = np.where(x.terminated, 0, following)

    def of_rows(rows, n):
        discounts = x.gamma ** np.arange(len(rows) + 1)
        returns = np.cumsum(discounts[:-1] * x.rewards[rows, n]) + discounts[1:] * following[rows, n]
        return np.dot(weights_of(rows, n), returns)

    return for_each_row(of_rows, x.terminated | truncated)


def where_valued(x):
    """The mean of the n-step returns that bootstrap from states with a value: the sum ends at each with 1 - λ."""

    def weights(rows, n):
        stops = np.where(x.has_value[rows + 1, n], 1 - x.lambda_, 0)
        stops[-1] = 1  # the end of the episode, or of the rollout
        return stops * np.cumprod([1, *(1 - stops[:-1])])

    targets = mean_of_returns(weights, x, np.nan_to_num(x.values))
    advantages, keep = targets - x.values[:-1], x.has_value[:-1]  # NaN without a value
    return {"advantages": advantages, "targets": np.where(keep, targets, np.nan), "keep": keep.astype(float)}


def retrace(x):
    """Munos et al., 2016, equation 4: Q plus the sum of later TD errors, each times the product of the c between."""
    following = np.where(x.terminated, 0, np.where(x.truncated, x.final_q, x.expected_q[1:]))
    delta = np.float64(x.rewards) + x.gamma * following - x.q
    c = x.gamma * x.lambda_ * np.minimum(1, np.exp(np.float64(x.log_rhos)))

    def of_rows(rows, n):
        return x.q[rows[0], n] + np.dot(np.cumprod([1, *c[rows[1:], n]]), delta[rows, n])

    return {"targets": for_each_row(of_rows, x.terminated | x.truncated)}


def upgo(x):
    """The return up to the first later step that does worse than its value, with the value of the state before it."""
    worse = np.float64(x.rewards) + x.gamma * np.where(x.terminated, 0, x.values[1:]) < x.values[:-1]

    def weights(rows, n):
        stop = next((i for i, row in enumerate(rows[1:]) if worse[row, n]), len(rows) - 1)
        return np.arange(len(rows)) == stop

    targets = mean_of_returns(weights, x)
    return {"advantages": targets - x.values[:-1], "targets": targets}


def renormalized(x):
    """The mean of the n-step advantages with weights in proportion to λ^(n-1)."""
    powers = [x.lam ** np.arange(n) / np.sum(x.lam ** np.arange(n)) for n in range(len(x.rewards) + 1)]
    return {"targets": mean_of_returns(lambda rows, _: powers[len(rows)], x, truncated=x.truncated)}


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
    "Renormalized weights of a finite horizon": (steps, renormalized, "terminated | truncated", "terminated"),
}
RECIPES = {heading: Recipe(*row) for heading, row in TABLE.items()}
