"""Token-level advantages for a batch of language-model samples: prompts, tool turns, padding, and a length limit.

    python examples/token_level.py --out token_level.png

Each row is one sample, each column a token position, and a transition is the choice of one token: s_t is the text
before it, V(s_t) what the critic makes of that text. Only tokens that the policy chose are transitions; `mask` says
which. The recursion skips all others, so credit passes from the answer over the tool's output to the call of the tool.

The rewards and values are made up, so that the numbers can be followed by hand; the calls are those of a real trainer.
"""

import argparse
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from gae_jax import gae

# What each token is: p prompt, t written by a tool, . padding; the policy chose the tokens marked x.
SAMPLES = {  # the last one ran into the length limit
    "short": "pppppxxxxxx.................",
    "with a tool": "pppxxxxttttttxxxxxxx........",
    "long": "ppppppxxxxxxxxxxxxxxxxxxxxx.",
    "cut off": "ppppxxxxxxxxxxxxxxxxxxxxxxxx",
}
SCORES = np.array([1.0, 1.0, -1.0, 0.0])  # the verdict on each finished answer; there is none on an unfinished one
TOKEN_COST = 0.01  # per chosen token, in place of the usual penalty on the divergence from a reference model


class Batch(NamedTuple):
    """Samples as a trainer holds them, `[N, T]`."""

    rewards: Array
    values: Array  # V(s_t) at each token; at dead positions a critic's output means nothing, here it is NaN
    last_value: Array  # [N], V(s_T), of the whole text
    terminated: Array  # the token ended the answer
    mask: Array  # the policy chose the token


def make_batch() -> Batch:
    """Scores every finished answer at its last token, with a critic that foresees the score ever better."""
    kinds = np.array([list(kinds) for kinds in SAMPLES.values()])
    mask = kinds == "x"
    steps = kinds.shape[1]
    last_token = steps - 1 - np.argmax(mask[:, ::-1], axis=1)
    finished = last_token < steps - 1
    terminated = (np.arange(steps) == last_token[:, None]) & finished[:, None]
    rewards = np.where(mask, -TOKEN_COST, 0) + np.where(terminated, SCORES[:, None], 0)
    progress = np.cumsum(mask, axis=1) / mask.sum(axis=1, keepdims=True)
    guess = np.where(finished, SCORES, 0.6)[:, None] * progress * 0.8
    values = np.where(mask, guess, np.nan)
    return Batch(*(jnp.asarray(x) for x in (rewards, values, guess[:, -1], terminated, mask)))


@jax.jit
def estimate(batch: Batch) -> tuple[Array, Array, Array]:
    """Returns the advantages for the policy, the targets for the critic, and the λ of each sample."""
    # The longer the answer, the closer λ is to 1: or else the verdict fades before it reaches the first tokens.
    lengths = batch.mask.sum(axis=1, keepdims=True)
    lambda_by_length = 1 - 1 / (0.25 * lengths + 1)
    arguments = batch.rewards, batch.values, batch.terminated
    options = {"gamma": 1.0, "bootstrap_value": batch.last_value, "mask": batch.mask, "time_axis": 1}
    advantages, _ = gae(*arguments, lambda_=lambda_by_length, **options)
    _, targets = gae(*arguments, lambda_=1.0, **options)  # the critic learns from whole returns, without bias
    return advantages, targets, lambda_by_length[:, 0]


def print_table(batch: Batch, advantages: Array, targets: Array, lambdas: Array) -> None:
    """One row a sample, with the numbers at the first and the last token that the policy chose."""
    table = Table("sample", title="Advantages A and value targets at the first and last chosen token", padding=(0, 0))
    for column in ("tokens", "up to", "λ", "A first", "A last", "target first", "target last"):
        table.add_column(column, justify="right")
    for i, name in enumerate(SAMPLES):
        first, *_, last = np.flatnonzero(batch.mask[i])
        ends = "end" if batch.terminated[i].any() else "limit"
        numbers = (x[i, t] for x in (advantages, targets) for t in (first, last))
        table.add_row(name, str(int(batch.mask[i].sum())), ends, f"{lambdas[i]:.3f}", *(f"{x:+.3f}" for x in numbers))
    Console().print(table)


def draw(batch: Batch, advantages: Array, path: pathlib.Path) -> None:
    """Advantages over tokens, one strip a sample; tokens that the policy did not choose are grey."""
    shown = np.where(batch.mask, advantages, np.nan)
    limit = np.nanmax(np.abs(shown))
    figure = Figure(figsize=(10, 3), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.88")
    image = axes.pcolormesh(shown, cmap="RdBu", vmin=-limit, vmax=limit, edgecolors="white", linewidth=1)
    for i, kinds in enumerate(SAMPLES.values()):
        for t, kind in enumerate(kinds):
            if kind in "pt":
                axes.text(t + 0.5, i + 0.5, kind, ha="center", va="center", color="0.45", fontsize=8)
    axes.set_yticks(np.arange(len(SAMPLES)) + 0.5, list(SAMPLES))
    axes.invert_yaxis()
    axes.set_xlabel("token position (p: prompt, t: written by the tool)")
    figure.colorbar(image, label="advantage (reward)")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Prints the table and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("token_level.png"), help="where to draw")
    path: pathlib.Path = parser.parse_args().out
    if not path.parent.is_dir():
        parser.error(f"--out: there is no directory {path.parent}")

    batch = make_batch()
    advantages, targets, lambdas = estimate(batch)
    print_table(batch, advantages, targets, lambdas)
    draw(batch, advantages, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
