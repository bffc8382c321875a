"""What each recipe of examples/guides/tokens.md computes: float64 NumPy, sums over later rows, no recursion.

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
NUMBERS = {"gamma": GAMMA, "lambda_": LAMBDA}

# Inputs.


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def nan_outside(mask: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.where(mask, x, np.nan).astype(np.float32)


def at_last_tokens(mask: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """The flag of each sample at its last chosen token, False elsewhere."""
    result = np.zeros_like(mask)
    for sample, rows in live_rows(mask):
        result[sample, rows[-1]] = flags[sample]
    return result


def token_batch(rng: np.random.Generator) -> Names:
    """Samples with prompts, tool turns and padding, [N, S]; one sample without any chosen token; NaN in masked rows."""
    shape = samples, steps = 8, 48
    mask = np.zeros(shape, bool)
    for row in mask[1:]:
        bounds = np.minimum(
            np.cumsum(rng.integers(1, 9, size=9)), steps
        )  # prompt, turn, tool, turn, tool, turn, padding
        for start, stop in zip(bounds[0::2], bounds[1::2], strict=False):
            row[start:stop] = True
    rewards, values = (nan_outside(mask, floats(rng, *shape)) for _ in range(2))
    finished = rng.random(samples) < 0.5
    finished[1:3] = True, False
    arrays = {"rewards": rewards, "values": values, "mask": mask, "finished": finished}
    return NUMBERS | arrays | {"terminated": at_last_tokens(mask, finished), "last_values": floats(rng, samples)}


def tool_tokens(rng: np.random.Generator) -> Names:
    """Rewards also on the prompt, on the tool's tokens and after the end; some ends are on a tool's token."""
    names = token_batch(rng)
    mask, shape = names["mask"], names["mask"].shape
    rewards = np.where(mask, names["rewards"], nan_outside(rng.random(shape) < 0.7, floats(rng, *shape)))
    terminated = np.zeros(shape, bool)
    for sample, rows in live_rows(mask):
        last = min(rows[-1] + rng.integers(3), shape[1] - 1)
        terminated[sample, last] = names["finished"][sample]
    return names | {"rewards": rewards, "terminated": terminated}


def penalized_tokens(rng: np.random.Generator) -> Names:
    mask = token_batch(rng)["mask"]
    log_probs, ref_log_probs = -np.abs(floats(rng, 2, *mask.shape))
    names = {"log_probs": log_probs, "ref_log_probs": ref_log_probs, "scores": floats(rng, len(mask)), "beta": 0.05}
    return names | {"mask": mask, "last": at_last_tokens(mask, np.ones(len(mask), bool))}


def packed_tokens(rng: np.random.Generator) -> Names:
    starts = np.sort(rng.choice(np.arange(1, 50), size=6, replace=False))
    arrays = {"rewards": floats(rng, 50), "values": floats(rng, 50)}
    return NUMBERS | arrays | {"cu_seqlens": np.array([0, *starts, 50], np.int32)}


def packed_segments(rng: np.random.Generator) -> Names:
    """Four segments a row and padding; the last token of some segments is not in `mask`, and one has none there."""
    shape = 8, 48
    segment_ids = np.sort(rng.integers(1, 6, shape), axis=1).astype(np.int32)  # the fifth is the padding
    mask = (rng.random(shape) < 0.6) & (segment_ids < 5)
    mask[0] &= segment_ids[0] != 2
    rewards, values = (nan_outside(mask, floats(rng, *shape)) for _ in range(2))
    return NUMBERS | {"rewards": rewards, "values": values, "mask": mask, "segment_ids": segment_ids}


def padded_segments(rng: np.random.Generator) -> Names:
    """One of the segments is full; about half of them end in a terminated row."""
    lengths = np.array([40, *rng.integers(1, 40, 7)], np.int32)
    steps = np.arange(41)[:, None]
    ends = (steps[:40] == lengths - 1) & (rng.random(8) < 0.5)
    rewards, values = (
        nan_outside(steps[:40] < lengths, floats(rng, 40, 8)),
        nan_outside(steps <= lengths, floats(rng, 41, 8)),
    )
    return NUMBERS | {"rewards": rewards, "values": values, "terminated": ends, "lengths": lengths}


def split_tokens(rng: np.random.Generator) -> Names:
    """On a mesh of 2 x 4 devices; the second half of the tokens has another mean than the first."""
    names = token_batch(rng)
    names["rewards"] = names["rewards"] + np.float32(2) * (np.arange(names["mask"].shape[1]) > 24)
    return names | {"mesh": Mesh(np.reshape(jax.devices()[:8], (2, 4)), ("dp", "cp"))}


def steps_of(rng: np.random.Generator, *batch: int, steps: int = 40) -> Names:
    """Rollouts [T, *batch] of several episodes."""
    flags = {"terminated": rng.random((steps, *batch)) < 0.1, "truncated": rng.random((steps, *batch)) < 0.1}
    rewards, values = floats(rng, steps, *batch), floats(rng, steps + 1, *batch)
    return NUMBERS | flags | {"rewards": rewards, "values": values, "final_values": floats(rng, steps, *batch)}


def plain(rng: np.random.Generator) -> Names:
    return steps_of(rng, 4)


def own_steps(rng: np.random.Generator) -> Names:
    """Half of the rows are mine; rewards and ends on any row, some of the other rewards NaN."""
    names, mask = plain(rng), rng.random((40, 4)) < 0.5
    rewards = nan_outside(mask | (rng.random((40, 4)) < 0.8), names["rewards"])
    truncated = names["truncated"] & ~names["terminated"]
    return names | {"rewards": rewards, "truncated": truncated, "mask": mask, "time_axis": 0}


def turn_based(rng: np.random.Generator) -> Names:
    """Three players in random order; every row has a reward for each of them."""
    player = rng.integers(3, size=(40, 4)).astype(np.int32)
    return steps_of(rng, 4, 3) | {"terminated": rng.random((40, 4)) < 0.1, "player": player}


def mortal_agents(rng: np.random.Generator) -> Names:
    """Agents die at random, and live again after the end of the episode."""
    names, done = steps_of(rng, 4, 3), rng.random((40, 4)) < 0.06
    alive, died = np.ones((40, 4, 3), bool), rng.random((40, 4, 3)) < 0.08
    for t in range(1, 40):
        alive[t] = done[t - 1, :, None] | (alive[t - 1] & ~died[t - 1])
    arrays = {"rewards": nan_outside(alive, names["rewards"]), "advantages": floats(rng, 40, 4, 3)}
    return names | arrays | {"alive": alive, "died": alive & died, "done": done}


def team(rng: np.random.Generator) -> Names:
    return steps_of(rng, 4, 3) | {"team_rewards": floats(rng, 40, 4), "done": rng.random((40, 4)) < 0.1}


def reward_channels(rng: np.random.Generator) -> Names:
    """The second channel goes on over the ends of episodes."""
    constants = {"gammas": np.array([0.9, 0.97, 1.0], np.float32), "episodic": np.array([True, False, True])}
    return steps_of(rng, 4, 3) | {"done": rng.random((40, 4)) < 0.1, "weights": floats(rng, 3)} | constants


def chunks(rng: np.random.Generator) -> Names:
    """Decisions of up to five steps; what follows an end within a chunk is NaN."""
    ends = rng.random((40, 5, 4)) < 0.1
    rewards = nan_outside(np.cumsum(ends, axis=1) - ends == 0, floats(rng, 40, 5, 4))
    return NUMBERS | {"rewards": rewards, "values": floats(rng, 41, 4), "ends": ends}


def unvalued_states(rng: np.random.Generator) -> Names:
    names, has_value = plain(rng), rng.random((41, 4)) < 0.7
    has_value[-1] = True
    return names | {"values": nan_outside(has_value, names["values"]), "has_value": has_value}


def second_rollout(rng: np.random.Generator) -> Names:
    """A rollout, and the carry of the rollout before it, whose rewards are kept for the reference."""
    rewards, ends = 5 * floats(rng, 80, 4) + np.float32(2), rng.random((80, 4)) < 0.1
    earlier = returns_so_far(rewards, ends)[:40]
    moments = (np.asarray(x, np.float32) for x in (earlier.size, earlier.mean(), earlier.var()))
    carry = (np.where(ends[39], 0, earlier[-1]).astype(np.float32), *moments)
    return {"rewards": rewards[40:], "ends": ends[40:], "carry": carry, "gamma": GAMMA, "whole": (rewards, ends)}


# References.


def live_rows(mask: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The positions of the chosen tokens of every sample that has any."""
    for sample, row in enumerate(mask):
        if row.any():
            yield sample, np.flatnonzero(row)


def of_parts(shape, parts, gamma, lambda_):
    """The advantages and targets of parts that know nothing of each other.

    A part: the places of its steps in the result, their rewards, values and flags, and the value behind the last one.
    """
    advantages, targets = np.zeros(shape), np.full(shape, np.nan)
    for places, rewards, values, terminated, behind in parts:
        advantages[places], targets[places] = oracle(
            rewards, values, terminated, gamma=gamma, lambda_=lambda_, bootstrap_value=behind
        )
    return {"advantages": advantages, "targets": targets}


def answers(rewards, values, mask, finished, last_values):
    """A part a sample: the tokens that were chosen."""
    for sample, rows in live_rows(mask):
        ends = finished[sample] & (rows == rows[-1])
        yield (sample, rows), rewards[sample, rows], values[sample, rows], ends, last_values[sample]


def of_answers(mask, gamma, lambda_, terminated, **names):
    return of_parts(mask.shape, answers(mask=mask, **names), gamma, lambda_)


def kl_rewards(mask, log_probs, ref_log_probs, scores, beta, **_):
    rewards = np.full(mask.shape, np.nan)
    for sample, rows in live_rows(mask):
        rewards[sample, rows] = beta * (np.asarray(ref_log_probs, np.float64) - log_probs)[sample, rows]
        rewards[sample, rows[-1]] += scores[sample]
    return {"rewards": rewards}


def before_each_token(c, lengths):
    values = np.array([[0, *row[:-1]] for row in c], np.float64)
    return {"values": values, "last_values": np.array([row[n - 1] for row, n in zip(c, lengths, strict=True)])}


def of_sequences(rewards, values, cu_seqlens, gamma, lambda_):
    """Every sequence by itself; nothing of value follows its last token."""
    rows = [np.arange(*bounds) for bounds in itertools.pairwise(cu_seqlens)]
    parts = ((i, rewards[i], values[i], i == i[-1], 0.0) for i in rows)
    return of_parts(rewards.shape, parts, gamma, lambda_)


def of_segments(rewards, values, mask, segment_ids, gamma, lambda_):
    """Every segment by itself, without the tokens that were not chosen."""
    where = [i for segment in range(1, 5) for i in live_rows(mask & (segment_ids == segment))]
    parts = ((i, rewards[i], values[i], i[1] == i[1][-1], 0.0) for i in where)
    return of_parts(mask.shape, parts, gamma, lambda_)


def of_padded_segments(rewards, values, terminated, lengths, gamma, lambda_):
    where = [(np.arange(length), n) for n, length in enumerate(lengths)]
    parts = ((i, rewards[i], values[i], terminated[i], values[lengths[i[1]], i[1]]) for i in where)
    return of_parts(rewards.shape, parts, gamma, lambda_)


def turns_of(rows: np.ndarray) -> list[np.ndarray]:
    """The runs of chosen tokens."""
    return np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)


def of_turns(rewards, values, mask, terminated, last_values, gamma, lambda_, **_):
    """A rollout of turns: the sum of what arrives before the next turn or the end, the value at their first token."""
    advantages = np.zeros(mask.shape)
    for sample, rows in live_rows(mask):
        turns, ends = turns_of(rows), np.flatnonzero(terminated[sample])
        bounds = [*(turn[0] for turn in turns), (ends[0] if len(ends) else mask.shape[1] - 1) + 1]
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


def of_two_levels(rewards, values, mask, finished, last_values, gamma, lambda_, turn_gamma, **_):
    """The last token of a turn has the advantage over turns; the tokens before it, the sum of the turn's TD errors."""
    advantages = np.zeros(mask.shape)
    for sample, rows in live_rows(mask):
        r, v, turns = rewards[sample].astype(np.float64), values[sample].astype(np.float64), turns_of(rows)
        last = np.array([turn[-1] for turn in turns])
        ends = finished[sample] & (last == last[-1])
        how = {"gamma": turn_gamma, "lambda_": lambda_, "bootstrap_value": last_values[sample]}
        of_turn, _ = oracle(r[last], v[last], ends, **how)
        for turn, advantage in zip(turns, of_turn, strict=True):
            deltas = [*(r[turn[:-1]] + gamma * v[turn[1:]] - v[turn[:-1]]), advantage]
            for i, token in enumerate(turn):
                advantages[sample, token] = np.dot((gamma * lambda_) ** np.arange(len(turn) - i), deltas[i:])
    return {"advantages": advantages, "targets": np.where(mask, advantages + values, np.nan)}


def spans(mask: np.ndarray, ends: np.ndarray) -> Iterator[tuple[Any, Any]]:
    """Each own step of one worker, and the row behind the last one that it answers for."""
    start = 0
    for stop in [*(np.flatnonzero(ends) + 1), len(mask)]:  # the episodes
        yield from itertools.pairwise([*(start + np.flatnonzero(mask[start:stop])), stop])
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

    def parts():
        for n, p in np.ndindex(rewards.shape[1:]):
            steps = list(spans(player[:, n] == p, terminated[:, n]))
            rows = [i for i, _ in steps]
            sums = [np.sum(rewards[i:j, n, p], dtype=np.float64) for i, j in steps]
            ends = [terminated[i:j, n].any() for i, j in steps]
            yield (rows, n, p), sums, values[rows, n, p], ends, values[-1, n, p]

    return of_parts(rewards.shape, parts(), gamma, lambda_)


def of_two_players(rewards, values, terminated, player, gamma, lambda_, **_):
    """The whole rollout in the view of each player, of which each keeps the rows in which it moved."""
    views = [np.where(player == p, 1, -1) for p in range(2)]
    both = [oracle(view[:-1] * rewards, view * values, terminated, gamma=gamma, lambda_=lambda_) for view in views]
    advantages, targets = (np.where(player[:-1] == 0, *each) for each in zip(*both, strict=True))
    return {"advantages": advantages, "targets": targets}


def of_lengths(mask, alpha, gamma, lambda_, terminated, **names):
    parts, policy, critic = [*answers(mask=mask, **names)], np.zeros(mask.shape), of_answers
    for part in parts:
        of_sample = of_parts(mask.shape, [part], gamma, max(0.0, 1 - 1 / (alpha * len(part[1]))))
        policy += of_sample["advantages"]
    critic = of_parts(mask.shape, parts, gamma, 1.0)["targets"]
    return {"policy_advantages": policy, "critic_targets": critic}


def normalized_returns(rewards, mask, gamma, **_):
    """The discounted sum of the later rewards of the sample."""
    returns = np.full(mask.shape, np.nan)
    for sample, rows in live_rows(mask):
        for i, row in enumerate(rows):
            returns[sample, row] = np.dot(gamma ** np.arange(len(rows) - i), np.float64(rewards[sample, rows[i:]]))
    return {"advantages": standardized(returns, mask, ddof=1)}


def standardized(x, mask, ddof=0):
    """Mean 0 and variance 1 over `mask`, and 0 elsewhere."""
    return np.where(mask, (x - np.mean(x[mask])) / np.std(x[mask], ddof=ddof), 0)


def of_whole_batch(mask, mesh, **names):
    outputs = of_answers(mask=mask, **names)
    return outputs | {"advantages": standardized(outputs["advantages"], mask)}


def of_mortal_agents(rewards, values, alive, died, done, gamma, lambda_, **_):
    advantages, targets = oracle(rewards, values, died | done[..., None], mask=alive, gamma=gamma, lambda_=lambda_)
    normalized = [standardized(advantages[..., i], alive[..., i]) for i in range(3)]
    targets = np.where(alive, targets, np.nan)
    return {"advantages": advantages, "targets": targets, "normalized": np.stack(normalized, axis=-1)}


def of_team(team_rewards, values, done, gamma, lambda_, **_):
    each = [oracle(team_rewards, values[..., i], done, gamma=gamma, lambda_=lambda_) for i in range(3)]
    advantages, targets = (np.stack(x, axis=-1) for x in zip(*each, strict=True))
    return {"advantages": advantages, "targets": targets}


def of_channels(rewards, values, done, episodic, gammas, weights, lambda_, **_):
    ends = [done & x for x in episodic]
    each = [oracle(rewards[..., k], values[..., k], ends[k], gamma=gammas[k], lambda_=lambda_)[0] for k in range(3)]
    return {"advantages": np.stack(each, axis=-1) @ np.float64(weights)}


def each_worker(fn: Callable[..., list[float]], *arrays: np.ndarray) -> np.ndarray:
    """Calls `fn` with the columns of the arrays [T, N], in float64 where they are floats."""
    wide = [x if x.dtype == bool else np.float64(x) for x in arrays]
    return np.stack([fn(*(x[:, n] for x in wide)) for n in range(arrays[0].shape[1])], axis=1)


def rows_left(ends: np.ndarray, t: int) -> range:
    """Row t and the rows after it to the end of the episode, or of the rollout."""
    later = np.flatnonzero(ends[t:])
    return range(t, t + later[0] + 1 if len(later) else len(ends))


def returns_so_far(rewards: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The discounted sum of the rewards of the episode up to each row."""

    def one_worker(rewards, ends):
        starts = [0, *(np.flatnonzero(ends) + 1)]
        episodes = [np.arange(max(x for x in starts if x <= t), t + 1) for t in range(len(rewards))]
        return [np.dot(rewards[rows], GAMMA ** np.arange(len(rows))[::-1]) for rows in episodes]

    return each_worker(one_worker, rewards, ends)


def of_running_deviation(rewards, whole, **_):
    """The deviation of all returns of both rollouts, from their rewards."""
    returns = returns_so_far(*whole)
    return {"scaled": np.float64(rewards) / np.std(returns), "returns": returns[40:]}


def behind_each_row(values, terminated, truncated=False, final_values=0.0):
    """The value that the row bootstraps from, if the sum ends there."""
    return np.where(terminated, 0, np.where(truncated, final_values, values[1:]))


def mean_of_returns(weights_of, rewards, behind, ends, gamma):
    """The returns of 1, 2, ... steps from row t, each with the value behind it, in the mean with `weights_of(rows)`."""
    gamma = np.broadcast_to(gamma, rewards.shape)

    def one_worker(rewards, behind, ends, gamma, column):
        targets = []
        for t in range(len(rewards)):
            rows = np.array(rows_left(ends, t))
            discounts = np.cumprod([1, *gamma[rows]])
            returns = np.cumsum(discounts[:-1] * rewards[rows]) + discounts[1:] * behind[rows]
            targets.append(np.dot(weights_of(rows, int(column[0])), returns))
        return targets

    columns = np.broadcast_to(np.arange(rewards.shape[1]), rewards.shape)
    return each_worker(one_worker, rewards, behind, ends, gamma, columns)


def lambda_weights(lambda_):
    """(1 - λ) λ^(n-1); the longest return has the weight of all beyond it."""
    return lambda rows, _: lambda_ ** np.arange(len(rows)) * np.where(rows == rows[-1], 1, 1 - lambda_)


def lambda_returns(rewards, values, terminated, gamma, lambda_):
    behind = behind_each_row(values, terminated)
    targets = mean_of_returns(lambda_weights(lambda_), np.float64(rewards), behind, terminated, np.float64(gamma))
    return {"advantages": targets - values[:-1], "targets": targets}


def where_valued(rewards, values, terminated, has_value, gamma, lambda_, **_):
    """The mean of the n-step returns that bootstrap from states with a value: the sum ends at each with 1 - λ."""

    def weights(rows, n):
        stops = np.where(has_value[rows + 1, n], 1 - lambda_, 0)
        stops[-1] = 1  # the end of the episode, or of the rollout
        return stops * np.cumprod([1, *(1 - stops[:-1])])

    behind = behind_each_row(np.nan_to_num(values), terminated)
    targets = np.where(has_value[:-1], mean_of_returns(weights, rewards, behind, terminated, gamma), np.nan)
    return {"advantages": targets - values[:-1], "targets": targets, "keep": has_value[:-1].astype(float)}


def with_renormalized_weights(rewards, values, terminated, truncated, final_values, gamma, lam, **_):
    """The mean of the n-step advantages with weights in proportion to λ^(n-1)."""

    def weights(rows, _):
        powers = lam ** np.arange(len(rows))
        return powers / powers.sum()

    behind = behind_each_row(values, terminated, truncated, final_values)
    return {"targets": mean_of_returns(weights, rewards, behind, terminated | truncated, gamma)}


def retrace(rewards, q, expected_q, final_q, terminated, truncated, log_rhos, gamma, lambda_, **_):
    """Munos et al., 2016, equation 4: Q plus the sum of later TD errors, each times the product of the c between."""

    def one_worker(delta, q, ends, c):
        rows_of = [np.array(rows_left(ends, t)) for t in range(len(q))]
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
    return {"advantages": targets - values[:-1], "targets": targets}


def peng(rewards, q_values, terminated, truncated, gamma, lambda_, **_):
    """The sum of an episode ends before a dropped row, with the value in it; a dropped row has no target."""
    best, dropped = np.max(q_values, axis=-1), truncated & ~terminated
    ends = terminated | np.concatenate([dropped[1:], np.zeros((1, 4), bool)])
    behind = behind_each_row(best, terminated)
    targets = mean_of_returns(lambda_weights(lambda_), rewards, behind, ends, gamma)
    return {"targets": np.where(dropped, np.nan, targets), "keep": (~dropped).astype(float)}


def of_chunks(rewards, values, ends, gamma, lambda_):
    """Each decision lasts to the first end within its chunk."""
    taken = np.array([[rows_left(column, 0) for column in chunk.T] for chunk in ends], object)
    durations = np.vectorize(len)(taken)
    sums = np.vectorize(lambda t, n: np.dot(gamma ** np.arange(durations[t, n]), rewards[t, list(taken[t, n]), n]))
    return lambda_returns(sums(*np.indices(durations.shape)), values, ends.any(axis=1), gamma**durations, lambda_)


def with_normalized_values(rewards, values, mean, deviation, terminated, gamma, lambda_, **_):
    outputs = lambda_returns(rewards, mean + deviation * np.float64(values), terminated, gamma, lambda_)
    return outputs | {"normalized_targets": (outputs["targets"] - mean) / deviation}


RECIPES: dict[str, tuple[Callable[[np.random.Generator], Names], Callable[..., dict[str, np.ndarray]]]] = {
    "Prompt, tool and padding tokens": (token_batch, of_answers),
    "Values after the token": (
        lambda rng: {"c": floats(rng, 8, 48), "lengths": rng.integers(1, 49, 8).astype(np.int32)},
        before_each_token,
    ),
    "KL in the reward": (penalized_tokens, kl_rewards),
    "Packed sequences, by `cu_seqlens`": (packed_tokens, of_sequences),
    "Packed sequences, by segment ids": (packed_segments, of_segments),
    "Padded segments, some of them cut": (padded_segments, of_padded_segments),
    "One decay per turn": (tool_tokens, of_turns),
    "Two levels: turns and their tokens": (lambda rng: token_batch(rng) | {"turn_gamma": 0.8}, of_two_levels),
    "λ by length, and another λ for the critic": (lambda rng: token_batch(rng) | {"alpha": 0.2}, of_lengths),
    "Reward to go": (token_batch, normalized_returns),
    "Data and context axes": (split_tokens, of_whole_batch),
    "Rewards and ends of masked rows": (own_steps, moved),
    "Turn-based games of several players": (turn_based, of_players),
    "Two players of a zero-sum game": (
        lambda rng: plain(rng) | {"player": rng.integers(2, size=(41, 4)).astype(np.int32)},
        of_two_players,
    ),
    "Agents that die": (mortal_agents, of_mortal_agents),
    "Team rewards": (team, of_team),
    "Reward channels": (reward_channels, of_channels),
    "Decisions of several steps": (chunks, of_chunks),
    "A state without a value": (unvalued_states, where_valued),
    "Normalized values": (lambda rng: plain(rng) | {"mean": 3.0, "deviation": 2.0}, with_normalized_values),
    "Reward scaling": (second_rollout, of_running_deviation),
    "Ends that are probabilities, and Dreamer's λ-returns": (
        lambda rng: plain(rng) | {"p": rng.uniform(0, 0.5, (40, 4)).astype(np.float32)},
        lambda rewards, values, p, gamma, lambda_, **_: lambda_returns(
            rewards, values, p > 1, gamma * (1 - np.float64(p)), lambda_
        ),
    ),
    "Peng's Q(λ)": (lambda rng: plain(rng) | {"q_values": floats(rng, 41, 4, 5)}, peng),
    "Retrace": (
        lambda rng: (
            plain(rng)
            | dict(zip(("q", "final_q", "log_rhos"), floats(rng, 3, 40, 4), strict=True))
            | {"expected_q": floats(rng, 41, 4)}
        ),
        retrace,
    ),
    "UPGO": (plain, upgo),
    "Average reward": (
        lambda rng: plain(rng) | {"rho": 0.3},
        lambda rewards, values, rho, terminated, lambda_, **_: lambda_returns(
            np.float64(rewards) - rho, values, terminated, 1.0, lambda_
        ),
    ),
    "Renormalized weights of a finite horizon": (lambda rng: plain(rng) | {"lam": LAMBDA}, with_renormalized_weights),
}
