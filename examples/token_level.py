"""Advantages of language-model tokens, for a batch with prompts, a tool turn, padding, and a length limit.

    python examples/token_level.py --out token_level.png

Each row is one sample, each column a token position, and a transition is the choice of one token: s_t is the text
before the token, V(s_t) its value. Only tokens that the policy chose are transitions, and `mask` is True there. The
recursion skips all others, so credit passes from the answer over the tool's output to the call of the tool.

The log probabilities, scores and values are made up, so that the numbers can be followed by hand. The calls are those
of a real trainer; examples/guides/tokens.md explains each of them.
"""

import itertools
import pathlib
import sys
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array, lax
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from gae_jax import gae

# What each token is: p prompt, t written by a tool, . padding; the policy chose the tokens marked x.
SAMPLES = {  # the last one ran into the length limit
    "short": "pppppxxxxxx.................",
    "with a tool": "pppxxxxttttttxxxxxxx........",
    "long": "ppppppxxxxxxxxxxxxxxxxxxxxx.",
    "length limit": "ppppxxxxxxxxxxxxxxxxxxxxxxxx",
}
SCORES = np.array([1.0, 1.0, -1.0, 0.0])  # the score of each finished answer; an unfinished answer has none
NOT_CHOSEN = {"p": "prompt", "t": "tool", ".": "padding"}


class Batch(NamedTuple):
    """Samples as a trainer holds them: arrays `[N, S]`, unless noted."""

    mask: Array  # the policy chose the token
    finished: Array  # [N], the answer ended before the length limit
    scores: Array  # [N]
    log_probs: Array  # of each token, under the policy
    ref_log_probs: Array  # under the reference model
    values: Array  # V(s_t), NaN at the tokens that the policy did not choose
    last_values: Array  # [N], the value of the whole text


class Estimates(NamedTuple):
    """Advantages of the policy in three ways, and targets of the critic in two, `[N, S]`."""

    advantages: Array  # one λ for all samples, one decay per token
    policy_advantages: Array  # λ by length
    turn_advantages: Array  # one decay per turn
    targets: Array  # one λ for all samples
    critic_targets: Array  # λ = 1
    by_length: Array  # [N, 1], the λ of each sample


def make_batch() -> Batch:
    """Makes up log probabilities, scores, and a critic whose guess approaches the score along the answer."""
    mask = np.array([list(kinds) for kinds in SAMPLES.values()]) == "x"
    finished = ~mask[:, -1]
    progress = np.cumsum(mask, axis=1) / mask.sum(axis=1, keepdims=True)
    guess = np.where(finished, SCORES, 0.6)[:, None] * progress * 0.8
    log_probs, ref_log_probs = np.where(mask, -0.8, 0.0), np.where(mask, -1.0, 0.0)
    arrays = (mask, finished, SCORES, log_probs, ref_log_probs, np.where(mask, guess, np.nan), guess[:, -1])
    return Batch(*(jnp.asarray(x) for x in arrays))


@jax.jit
def estimate(batch: Batch, *, beta: float, gamma: float, lambda_: float, alpha: float) -> Estimates:
    """Runs several recipes of examples/guides/tokens.md, line by line as they are printed there."""
    mask, finished, scores, log_probs, ref_log_probs, values, last_values = batch

    last = mask & (jnp.cumsum(mask, axis=1) == jnp.sum(mask, axis=1, keepdims=True))  # the last token of each answer
    kl = log_probs - ref_log_probs
    rewards = -beta * kl + jnp.where(last, scores[:, None], 0)

    terminated = last & finished[:, None]
    advantages, targets = gae(
        rewards, values, terminated, mask=mask, gamma=gamma, lambda_=lambda_, bootstrap_value=last_values, time_axis=1
    )

    first = mask & ~jnp.pad(mask[:, :-1], ((0, 0), (1, 0)))  # the turn's first token
    rewards = jnp.where(mask | jnp.isfinite(rewards), rewards, 0)  # padding may hold NaN
    turn_rewards, ended = (
        to_my_steps(x.astype(rewards.dtype), first, terminated, time_axis=1) for x in (rewards, terminated)
    )
    turns = gae(
        turn_rewards, values, ended, mask=first, gamma=gamma, lambda_=lambda_, bootstrap_value=last_values, time_axis=1
    )
    start = lax.cummax(jnp.where(first, jnp.arange(mask.shape[1]), 0), axis=1)  # where the turn began
    turn_advantages = jnp.where(mask, jnp.take_along_axis(turns.advantages, start, axis=1), 0)

    lengths = jnp.sum(mask, axis=1, keepdims=True, dtype=float)
    by_length = jnp.maximum(0.0, 1 - 1 / (alpha * lengths))  # [N, 1]
    policy_advantages, _ = gae(
        rewards, values, terminated, mask=mask, gamma=gamma, lambda_=by_length, bootstrap_value=last_values, time_axis=1
    )
    _, critic_targets = gae(
        rewards, values, terminated, mask=mask, gamma=gamma, lambda_=1.0, bootstrap_value=last_values, time_axis=1
    )
    return Estimates(advantages, policy_advantages, turn_advantages, targets, critic_targets, by_length)


def to_my_steps(x: jax.Array, mask: jax.Array, ends: jax.Array, time_axis: int) -> jax.Array:
    """Adds x of the masked rows to the last unmasked row before them in the same episode; 0 in masked rows."""
    inside = jnp.roll(jnp.where(mask, 0.0, 1.0), -1, axis=time_axis)  # the next row is masked: γ = 1, else 0
    sums = gae(
        x, jnp.zeros_like(x), ends, gamma=inside, lambda_=1.0, bootstrap_value=0.0, time_axis=time_axis
    ).advantages
    return jnp.where(mask, sums, 0)


def print_table(batch: Batch, estimates: Estimates) -> None:
    """One row per sample, with the numbers at the first token that the policy chose."""
    title = "At the first chosen token; λ(n): by length; turn: one decay per turn"
    table = Table("sample", title=title, padding=(0, 0))
    for column in ("tokens", "end", "λ(n)", "A", "A, λ(n)", "A, turn", "target", "target, λ = 1"):
        table.add_column(column, justify="right")
    for i, name in enumerate(SAMPLES):
        first = np.argmax(batch.mask[i])
        end = "answer" if batch.finished[i] else "limit"
        numbers = [f"{x[i, first]:+.3f}" for x in estimates[:5]]
        table.add_row(name, str(int(batch.mask[i].sum())), end, f"{estimates.by_length[i, 0]:.3f}", *numbers)
    Console().print(table)


def draw(batch: Batch, estimates: Estimates, path: pathlib.Path) -> None:
    """A bar for each token that the policy chose, up or down from zero; a row per sample, a column per estimate."""
    columns = {
        "one decay per token, λ by length": estimates.policy_advantages,
        "one decay per turn": estimates.turn_advantages,
    }
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    all_axes = figure.subplots(len(SAMPLES), len(columns), sharex=True, sharey=True)
    for column, (title, advantages) in enumerate(columns.items()):
        all_axes[0, column].set_title(title)
        all_axes[-1, column].set_xlabel("token position")
        for axes, (name, kinds), row in zip(all_axes[:, column], SAMPLES.items(), advantages, strict=True):
            colors = ["C0" if x > 0 else "C1" for x in row]
            axes.bar(range(len(kinds)), row, color=colors, edgecolor="black", linewidth=0.5)
            axes.axhline(0, color="black", linewidth=0.8)
            start = 0
            for kind, run in itertools.groupby(kinds):
                end = start + len(list(run))
                if kind in NOT_CHOSEN:
                    hatch = "" if kind == "." else "////"
                    axes.axvspan(start - 0.5, end - 0.5, facecolor="0.95", edgecolor="0.75", hatch=hatch, linewidth=0)
                    if end - start > 2:
                        place, white = (start + end - 1) / 2, {"facecolor": "white", "edgecolor": "none", "pad": 1}
                        axes.text(place, -0.7, NOT_CHOSEN[kind], ha="center", va="center", size="small", bbox=white)
                start = end
            if column == 0:
                axes.set_ylabel(name)
    all_axes[0, 0].margins(x=0)
    figure.supylabel("advantage")
    figure.savefig(path, dpi=120)


def main(
    out: pathlib.Path = pathlib.Path("token_level.png"),
    beta: float = 0.05,
    gamma: float = 1.0,
    lambda_: Annotated[float, tyro.conf.arg(name="lambda")] = 0.95,
    alpha: float = 1.0,
) -> None:
    """Prints the table and writes the picture.

    Args:
      out: the picture to write.
      beta: weight of the KL penalty.
      gamma: discount, from 0 to 1.
      lambda_: λ, from 0 to 1, where it is the same for all samples.
      alpha: λ by length is 1 - 1 / (alpha * length).
    """
    if not (0 <= gamma <= 1 and 0 <= lambda_ <= 1 and alpha > 0):
        sys.exit("error: --gamma and --lambda must be from 0 to 1, and --alpha must be positive")
    batch = make_batch()
    estimates = estimate(batch, beta=beta, gamma=gamma, lambda_=lambda_, alpha=alpha)
    print_table(batch, estimates)
    draw(batch, estimates, out)
    print(f"wrote {out}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
