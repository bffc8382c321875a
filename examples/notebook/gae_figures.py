"""The figures of `gae_explained.ipynb`, and the figure that `bug_study.py --draw` writes.

A function draws numbers that its caller has computed; the claims about the numbers are asserted there. Light, middle
and dark differ in grey too, and so do the styles of the lines.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

plt.rcParams |= {"figure.dpi": 120, "figure.constrained_layout.use": True, "font.size": 10, "axes.titlesize": 10}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
DARK, MIDDLE, LIGHT = "#16325c", "#c2553f", "#e3b261"
LINES = ((LIGHT, "--"), (MIDDLE, ":"), (DARK, "-"), ("black", "-."))
MINUS = "\N{MINUS SIGN}"


def interval(samples: Any) -> np.ndarray:
    """Returns a 95% interval `[2, ...]` of the mean over the first axis, by bootstrap."""
    samples = np.asarray(samples)
    picks = np.random.default_rng(0).integers(len(samples), size=(2000, len(samples)))
    return np.quantile(samples[picks].mean(axis=1), [0.025, 0.975], axis=0)


# ---------------------------------------------------------------------------------------------------------------------
# The formula.


def weights(rows: Mapping[str, Sequence[np.ndarray]], lambda_: float) -> None:
    """Draws the weights of A^(1) ... A^(n), a row of pictures for each variant; the first one has a tail."""
    figure, grid = plt.subplots(2, 3, figsize=(9.5, 4.6), sharex=True, sharey=True)
    for axes_row, (name, variants), colour in zip(grid, rows.items(), (DARK, LIGHT), strict=True):
        for axes, w in zip(axes_row, variants, strict=True):
            n = len(w)
            axes.bar(np.arange(1, n + 1), w, color=colour, edgecolor="black", linewidth=0.6)
            if colour == DARK:
                axes.bar(n, lambda_ * w[-1], bottom=(1 - lambda_) * w[-1], color="white", hatch="////")
                axes.bar(n, w[-1], color="none", edgecolor="black", linewidth=0.6)
            axes.set_title(f"{n} rows left: mean k = {w @ np.arange(1, n + 1):.1f}")
            axes.set_xticks([1, 4, 8, 12])
        axes_row[0].set_ylabel(f"{name}:\nweight of $A^{{(k)}}$")
    for axes in grid[1]:
        axes.set_xlabel("k (steps)")
    arrow = {"arrowstyle": "->"}
    grid[0, 0].annotate("weight of the missing tail\n(hatched)", (12, 0.29), (3.2, 0.6), arrowprops=arrow)
    figure.suptitle(f"Near the end, the longest estimate takes over ($\\lambda = {lambda_}$)")


def bias_and_variance(
    lambdas: np.ndarray,
    curves: Mapping[float, tuple[np.ndarray, np.ndarray]],
    explained: Mapping[float, float],
    simulated: Mapping[float, Mapping[float, np.ndarray]],
) -> None:
    """Draws squared bias and variance over lambda for each error of the critic, and simulated squared errors."""
    figure, grid = plt.subplots(1, 3, figsize=(10.5, 3.9), sharey=True)
    for axes, (size, (bias, variance)) in zip(grid, curves.items(), strict=True):
        error = bias + variance
        best = lambdas[error.argmin()]
        axes.plot(lambdas, bias, color=LIGHT, linestyle="--", linewidth=2, label="bias squared")
        axes.plot(lambdas, variance, color=MIDDLE, linestyle=":", linewidth=2.5, label="variance")
        axes.plot(lambdas, error, color=DARK, linewidth=2, label="mean squared error")
        means = [errors.mean() for errors in simulated[size].values()]
        axes.plot(list(simulated[size]), means, "o", color="black", markersize=5, label="simulated")
        axes.axvline(best, color="0.6", linewidth=1, zorder=0)
        axes.set_title(f"{critic_label(size, explained)}\nbest $\\lambda$ = {best:.2f}")
        axes.set_xlabel(r"$\lambda$")
    grid[0].set_ylabel("squared error of one estimate\n(in units of reward squared)")
    grid[2].legend(loc="upper left")
    figure.suptitle(r"A single estimate: the better the critic, the smaller the best $\lambda$")


def critic_label(size: float, explained: Mapping[float, float]) -> str:
    """Names a critic by its error and explained variance."""
    return f"critic's error {size}, explained variance {explained[size]:.2f}".replace("-", MINUS)


def best_lambda(
    counts: np.ndarray, best: Mapping[float, np.ndarray], explained: Mapping[float, float], marked: Sequence[int]
) -> None:
    """Draws the best lambda over the number of averaged estimates, for each error of the critic."""
    _, axes = plt.subplots(figsize=(7.5, 4.3))
    for (size, values), (colour, style) in zip(best.items(), LINES, strict=False):
        axes.plot(counts, values, color=colour, linestyle=style, linewidth=2, label=critic_label(size, explained))
        at, above = np.searchsorted(counts, marked), colour == LIGHT
        axes.plot(counts[at], values[at], "o", color=colour, markeredgecolor="black", markersize=6)
        for x, y in zip(counts[at], values[at], strict=True):
            offset = (0, 6 if above or y < 0.2 else -14)
            axes.annotate(f"{y:.2f}", (x, y), offset, textcoords="offset points", ha="center", fontsize=8)
    axes.axhline(0.95, color="0.5", linewidth=1, zorder=0)
    axes.text(counts[0], 0.955, "0.95, the usual choice", color="0.3", fontsize=9, va="bottom")
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks := [2**i for i in range(0, 13, 2)], [str(tick) for tick in ticks])
    axes.set_ylim(-0.02, 1.09)
    axes.set_xlabel("N (independent estimates of a state and an action that are averaged)")
    axes.set_ylabel(r"best $\lambda$")
    axes.set_title(r"Averaging cuts variance, not bias: more data, larger $\lambda$")
    axes.legend(loc="lower right")


# ---------------------------------------------------------------------------------------------------------------------
# Jacobians. One colour map for every derivative.


def heat(axes: Axes, jacobian: np.ndarray, boundaries: Sequence[int] = (), numbers: bool = True) -> Any:
    """Draws a Jacobian: zeros white, the size as darkness, and the sign as colour and as a number or a minus."""
    rows, columns = jacobian.shape
    shown = np.ma.masked_equal(jacobian, 0)
    image = axes.pcolormesh(shown, cmap="PuOr_r", vmin=-1.3, vmax=1.3, edgecolors="0.85", linewidth=0.5)
    for t, s in np.argwhere(jacobian != 0):
        value = jacobian[t, s]
        text = f"{value:.2f}".replace("0.", ".").replace("-", MINUS) if numbers else MINUS * int(value < 0)
        size, weight = (7.5, "normal") if numbers else (11, "bold")
        ink = "white" if abs(value) > 0.75 else "black"
        axes.text(s + 0.5, t + 0.5, text, ha="center", va="center", fontsize=size, fontweight=weight, color=ink)
    for boundary in boundaries:
        axes.axhline(boundary, color="black", linewidth=0.9, linestyle=":")
        if columns > 1:
            axes.axvline(boundary, color="black", linewidth=0.9, linestyle=":")
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.set_aspect("equal")
    axes.spines[:].set_visible(True)
    return image


def jacobians(by_reward: np.ndarray, by_value: np.ndarray, by_final: np.ndarray, end: int, limit: int) -> None:
    """Draws the derivatives of the advantages; step `end` terminates, and step `limit` is truncated."""
    steps = len(by_reward)
    figure, grid = plt.subplots(
        1, 3, figsize=(13.2, 5.4), width_ratios=[10, 11, 2.6], layout=ConstrainedLayoutEngine(wspace=0.06)
    )
    pictures = by_reward, by_value, by_final[:, limit : limit + 1]
    names = "r_j", "V(s_j)", r"V(\mathrm{final})"
    labels = (
        "j (step of the reward)",
        f"j (step of the value; {steps} is $V(s_T)$)",
        f"the final\nobservation\nof step {limit}",
    )
    for axes, picture, name, label in zip(grid, pictures, names, labels, strict=True):
        heat(axes, picture, boundaries=(end + 1, limit + 1))
        axes.set_title(rf"$\partial \hat A_t / \partial {name}$", fontsize=13)
        columns = picture.shape[1] if picture.shape[1] > 1 else 0
        axes.set_xticks(np.arange(columns) + 0.5, np.arange(columns))
        axes.set_yticks(np.arange(steps) + 0.5, np.arange(steps))
        axes.set_xlabel(label)
    grid[0].set_ylabel("t (step of the advantage)")
    for axes in grid[:2]:
        axes.text(end + 1.15, end + 0.93, f"step {end} terminates", va="bottom", style="italic")
        axes.text(limit + 0.85, limit + 1.07, f"step {limit} is truncated", ha="right", va="top", style="italic")
    figure.colorbar(grid[0].collections[0], ax=grid, label="derivative (no unit)", shrink=0.8)
    figure.suptitle(
        "No advantage depends on another episode; after a truncation, the value of the final observation counts"
    )


def gallery(
    pictures: Mapping[str, tuple[np.ndarray, np.ndarray]],
    titles: Mapping[str, str],
    boundaries: Sequence[int],
) -> None:
    """Draws two Jacobians of each estimator, and a thick border around each cell that differs from the first one's."""
    figure, grid = plt.subplots(4, 4, figsize=(13, 12.2), height_ratios=[1, 0.83, 1, 0.83])
    right = next(iter(pictures.values()))
    for i, (name, pair) in enumerate(pictures.items()):
        for j, picture in enumerate(pair):
            axes = grid[2 * (i // 4) + j, i % 4]
            heat(axes, picture, boundaries, numbers=False)
            for t, s in np.argwhere(np.abs(picture - right[j]) > 1e-5):
                axes.add_patch(Rectangle((s + 0.04, t + 0.04), 0.92, 0.92, fill=False, linewidth=1.8))
            ticks = np.array([0, 3, 6, 9, 12][: 4 + j])
            axes.set_xticks(ticks + 0.5, ["final" if tick == 12 else str(tick) for tick in ticks])
            axes.set_yticks(np.array([0, 3, 6, 9]) + 0.5, ["0", "3", "6", "9"])
        top = grid[2 * (i // 4), i % 4]
        top.set_title(f"{titles[name]}\n{CONSEQUENCES[name]}")
        top.set_xlabel("j (step of the reward)")
        grid[2 * (i // 4) + 1, i % 4].set_xlabel("j (step of the value)")
    for axes in grid[:, 0]:
        axes.set_ylabel("t (step of the advantage)")
    figure.colorbar(grid[0, 0].collections[0], ax=grid, label="derivative (no unit)", shrink=0.3, aspect=25)
    figure.suptitle(
        r"Each bug changes $\partial \hat A_t / \partial r_j$ (rows 1 and 3) or "
        r"$\partial \hat A_t / \partial V(s_j)$ (rows 2 and 4)."
        "\n"
        "Thick border: the cell differs from the right one. Minus: a negative derivative.",
        fontsize=11,
    )


CONSEQUENCES = {
    "right": "check_gae finds no mistake",
    "result in reverse": "a step has another step's advantage",
    "flag of the step before": "every episode ends one step late",
    "termination ignored": "the next episode counts too",
    "truncation as termination": "no value follows the time limit",
    "truncation not cut": "the next episode counts too",
    "V(s_t) for V(final)": "a step bootstraps from its own value",
    "λ missing on the first hop": r"later TD errors count $1/\lambda$ times",
}


# ---------------------------------------------------------------------------------------------------------------------
# The five hours.


def evaluations_of(record: Mapping[str, Any], name: str) -> np.ndarray:
    """Returns the evaluations of an estimator, `[seeds, EVALUATIONS + 1]`."""
    return np.array(record["results"][name]["evaluations"])


def lengths_of(record: Mapping[str, Any], name: str) -> np.ndarray:
    """Returns the mean lengths of the episodes of training, `[seeds, EVALUATIONS]`."""
    return np.array(record["results"][name]["training_lengths"])


def thousands_of_steps(record: Mapping[str, Any]) -> np.ndarray:
    """Returns when the evaluations were made."""
    between = record["settings"]["steps_between_evaluations"]
    return np.arange(evaluations_of(record, "right").shape[1]) * between / 1e3


def curve(axes: Axes, record: Mapping[str, Any], name: str, colour: str = DARK, style: str = "-", **how: Any) -> None:
    """Draws the mean evaluation over training, with its interval as a band."""
    evaluations, x = evaluations_of(record, name), thousands_of_steps(record)
    axes.fill_between(x, *interval(evaluations), color=colour, alpha=0.25, linewidth=0)
    axes.plot(x, evaluations.mean(0), color=colour, linestyle=style, linewidth=2, **how)


def learning_curves(record: Mapping[str, Any], groups: Mapping[str, Sequence[str]], left_out: str) -> None:
    """Draws the curves of each bug in groups: the right one, then what is loud, silent and invisible."""
    figure, grid = plt.subplots(2, 4, figsize=(12.5, 6.6), sharex=True, sharey=True)
    x, right = thousands_of_steps(record), evaluations_of(record, "right").mean(0)
    names = [(group, name) for group, members in groups.items() for name in members]
    for axes, (group, name) in zip(grid.flat, names, strict=False):
        if name != "right":
            axes.plot(x, right, color="0.55", linewidth=1, label="evaluation of the right one")
        curve(axes, record, name, label="evaluation, up to 500 steps")
        lengths = lengths_of(record, name).mean(0)
        axes.plot(x[1:], lengths, color=MIDDLE, linestyle="--", linewidth=2, label="training episode, up to 100")
        axes.set_title(f"{name}: {evaluations_of(record, name)[:, -1].mean():.0f}", pad=4)
        shade = {"RIGHT": "1.0", "LOUD": "0.75", "INVISIBLE": "0.93", "SILENT": "0.85"}[group]
        box = {"facecolor": shade, "edgecolor": "black", "linewidth": 0.6, "pad": 2.5}
        axes.text(0.03, 0.95, group, transform=axes.transAxes, va="top", fontsize=9, fontweight="bold", bbox=box)
    for axes in grid[:, 0]:
        axes.set_ylabel("steps that the pole stays up")
    for axes in grid[1]:
        axes.set_xlabel("training steps (thousands)")
    grid[0, 3].tick_params(labelbottom=True)
    grid[0, 3].set_xlabel("training steps (thousands)")
    last = grid[1, 3]
    last.set_axis_off()
    last.legend(*grid[0, 1].get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(-0.05, 1))
    text = f"Left out, not trained:\n{left_out}.\n\n"
    text += "Number in a title: the mean\nof the last evaluations."
    last.text(0.0, 0.05, text, transform=last.transAxes, fontsize=9.5)
    figure.suptitle(
        "The training curve (dashed) shows one bug of six; with the other five it looks like an agent that learns"
    )


def dots(axes: Axes, rows: Mapping[str, np.ndarray]) -> None:
    """Draws one dot a seed, a bar from end to end of the interval of the mean, and a tick at the mean."""
    for i, samples in enumerate(rows.values()):
        jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(samples))
        axes.plot(samples, i + jitter, "o", color=LIGHT, markeredgecolor="0.3", markeredgewidth=0.5, markersize=4)
        low, high = interval(samples)
        axes.plot([low, high], [i, i], color=DARK, linewidth=3, solid_capstyle="butt")
        axes.plot([samples.mean()] * 2, [i - 0.36, i + 0.36], color="black", linewidth=2)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)


def orders(record: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Draws how agents learn from advantages that were moved to other rows; `names` maps results to labels."""
    figure, (curves, ends) = plt.subplots(1, 2, figsize=(12, 5.4), width_ratios=[1, 1.15])
    styles = ((DARK, "-"), (DARK, "--"), (MIDDLE, "-"), (MIDDLE, ":"), (MIDDLE, "--"), (LIGHT, "--"))
    styles += (("black", "-."), (LIGHT, "-"))
    for (name, label), (colour, style) in zip(names.items(), styles, strict=True):
        mean = evaluations_of(record, name).mean(0)
        label = label.replace("\n", " ")
        curves.plot(thousands_of_steps(record), mean, color=colour, linestyle=style, linewidth=2, label=label)
    curves.set_xlabel("training steps (thousands)")
    curves.set_ylabel("steps that the pole stays up")
    curves.legend(fontsize=8, loc="upper left", handlelength=3)
    curves.set_ylim(0, 800)
    curves.set_yticks(range(0, 501, 100))
    dots(ends, {label: evaluations_of(record, name)[:, -1] for name, label in names.items()})
    ends.set_xlabel("steps of the last evaluation (limit 500)")
    figure.suptitle(
        "Which worker did well is enough to learn; without it, most agents do not (left: means of 32 seeds)"
    )


def same_curve_worse_agent(record: Mapping[str, Any]) -> Figure:
    """Draws the figure of the README: the same training curve, a worse agent."""
    figure, (seen, got) = plt.subplots(1, 2, figsize=(7, 2.9), width_ratios=[1, 1.05])
    x = thousands_of_steps(record)
    labels = {
        "right": "right",
        "truncation as termination": "time limit as termination",
        "truncation not cut": "time limit ignored",
    }
    for (name, label), (colour, style) in zip(
        labels.items(), ((DARK, "-"), (MIDDLE, "--"), ("black", ":")), strict=True
    ):
        seen.plot(x[1:], lengths_of(record, name).mean(0), color=colour, linestyle=style, linewidth=2, label=label)
        curve(got, record, name, colour, style)
        end = evaluations_of(record, name)[:, -1].mean()
        got.text(x[-1] + 2, end, f"{end:.0f}", color=colour, va="center")
    seen.set_ylim(0, 110)
    seen.set_xlim(0, None)
    seen.set_title("training episodes (limit 100)")
    seen.legend(loc="lower right", handlelength=2.6)
    seen.set_ylabel("steps that the pole stays up")
    got.set_ylim(0, 550)
    got.set_title("evaluations (limit 500)")
    got.text(0.97, 0.04, "bands: 95% intervals\nof the mean", transform=got.transAxes, ha="right", fontsize=9)
    for axes in (seen, got):
        axes.set_xlabel("training steps (thousands)")
    return figure


def dropped_row(advantages: np.ndarray, counted: np.ndarray, kept: np.ndarray, dropped: int) -> None:
    """Draws advantages with a dropped row, standardized over all rows and over the samples only."""
    figure, grid = plt.subplots(1, 3, figsize=(10.5, 3), sharex=True, sharey=True)
    titles = "as estimated", "standardized over all rows", "standardized over the samples"
    for axes, numbers, title in zip(grid, (advantages, counted, kept), titles, strict=True):
        rows = np.arange(len(numbers))
        axes.bar(rows, numbers, color=np.where(rows == dropped, MIDDLE, DARK), edgecolor="black", linewidth=0.6)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.annotate(
            f"{numbers[dropped]:.2f}".replace("-", MINUS),
            (dropped, numbers[dropped]),
            (0, 4 if numbers[dropped] >= 0 else -4),
            textcoords="offset points",
            ha="center",
            va="bottom" if numbers[dropped] >= 0 else "top",
            fontweight="bold",
        )
        axes.set_title(title)
        axes.set_xticks(rows)
        axes.set_xlabel("t (step)")
        axes.margins(y=0.15)
    grid[0].set_ylabel("advantage\n(in units of reward)")
    for axes in grid[1:]:
        axes.set_ylabel("standardized (no unit)")
    figure.suptitle(f"Step {dropped} was dropped; standardized with the others, it has the lowest advantage of all")


# ---------------------------------------------------------------------------------------------------------------------
# One number, tokens, lambda.


def affine_pieces(inputs: np.ndarray, outputs: Mapping[str, np.ndarray]) -> None:
    """Draws h at the start of a piece over h after the piece."""
    _, axes = plt.subplots(figsize=(6.8, 4))
    for (label, h), (colour, style) in zip(outputs.items(), LINES, strict=True):
        axes.plot(inputs, h, color=colour, linestyle=style, linewidth=2, marker="o", markersize=4, label=label)
    axes.set_xlabel("h after the piece (input)")
    axes.set_ylabel("h at its start (output)")
    axes.set_title("A piece of any length is a straight line: one number in, one number out")
    axes.legend()


def blocks(number: int, rows: int) -> None:
    """Draws the three steps: rows into maps, maps into h, h into rows; time runs to the right."""
    figure, axes = plt.subplots(figsize=(11, 3.9))
    shades = plt.get_cmap("cividis")(np.linspace(0.15, 0.95, number))
    arrow = {"arrowstyle": "-|>", "color": "black"}
    for block in range(number):
        left = block * (rows + 1)
        for row in range(rows):
            for y in (4.4, 0.0):
                axes.add_patch(Rectangle((left + row, y), 0.9, 0.9, facecolor=shades[block], edgecolor="black"))
        axes.add_patch(Rectangle((left + 0.6, 2.2), rows - 1.3, 0.9, facecolor=shades[block], edgecolor="black"))
        ink = "white" if block < number / 2 else "black"
        axes.text(left + rows / 2, 2.65, f"$(a, b)_{block}$", ha="center", va="center", color=ink, fontsize=12)
        axes.annotate("", (left + rows / 2, 3.15), (left + rows / 2, 4.35), arrowprops=arrow)
        axes.annotate("", (left + rows / 2, 0.95), (left + rows / 2, 2.15), arrowprops=arrow)
        behind = left + rows + 1.6 if block < number - 1 else left + rows + 1.2
        axes.annotate("", (left + rows - 0.65, 2.65), (behind, 2.65), arrowprops=arrow)
        axes.text(left + rows + 0.35, 2.85, f"$h_{{{(block + 1) * rows}}}$", ha="center", va="bottom", fontsize=12)
    right = number * (rows + 1) + 1
    texts = ((4.85, "1. compose each block,\nall at once"), (2.65, "2. pass h through the maps,\nlast block first"))
    for y, text in (*texts, (0.45, "3. run each block with its h,\nall at once")):
        axes.text(right, y, text, va="center", fontsize=11)
    axes.set_xlim(-0.3, right + 9)
    axes.set_ylim(-0.9, 5.6)
    axes.annotate("", (right - 2, -0.5), (0, -0.5), arrowprops={"arrowstyle": "->", "color": "0.4"})
    axes.text(0, -0.45, "time (rows)", color="0.4", va="bottom")
    axes.set_axis_off()
    figure.suptitle("Only step 2 goes from block to block, and it passes one number")


def tokens(kinds: np.ndarray, turn: np.ndarray, by_token: np.ndarray, by_turn: np.ndarray) -> None:
    """Draws the advantages of a sample's tokens; the tokens that the policy did not choose are masked."""
    figure, grid = plt.subplots(2, 1, figsize=(9.5, 4.4), sharex=True, sharey=True)
    titles = "one decay per token: the call gets little of the reward", "one decay per turn: the call gets its share"
    for axes, advantages, title in zip(grid, (by_token, by_turn), titles, strict=True):
        colours = np.where(turn == 0, LIGHT, DARK)
        axes.bar(np.arange(len(kinds)), advantages, color=colours, edgecolor="black", linewidth=0.6)
        for i in np.flatnonzero(kinds != "x"):
            axes.axvspan(i - 0.5, i + 0.5, color="0.9", linewidth=0)
        axes.set_title(title)
        axes.set_ylabel("advantage\n(in units of reward)")
    grid[0].text(np.flatnonzero(turn == 0)[kinds[turn == 0] == "x"].mean(), 0.35, "call", ha="center", style="italic")
    grid[0].text(np.flatnonzero((turn == 1) & (kinds == "x"))[2], 0.6, "answer", ha="center", style="italic")
    grid[1].set_xticks(np.arange(len(kinds)), list(kinds))
    grid[1].set_xlabel("token (p prompt, x chosen by the policy, t written by the tool, . padding; grey: masked)")
    figure.suptitle("The call of the tool gets credit for the answer; the tool's output in between is skipped")


def lengths_and_packing(lengths: Sequence[int], shares: Mapping[str, Sequence[float]], packed: np.ndarray) -> None:
    """Draws the share of a final reward that the first token gets, and the Jacobian of samples in one row."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), width_ratios=[1.3, 1])
    for (label, share), (colour, style) in zip(shares.items(), LINES, strict=False):
        left.plot(lengths, share, color=colour, linestyle=style, marker="o", linewidth=2, label=label)
    left.set_xscale("log", base=2)
    left.set_xticks(lengths, [str(length) for length in lengths])
    left.set_xlabel("length L (tokens)")
    left.set_ylabel("share of the final reward\nthat the first token gets")
    left.set_title(r"With a fixed $\lambda$, the first token of a long sample gets almost nothing")
    left.legend()
    image = heat(right, packed, numbers=False)
    ticks = np.arange(0, len(packed), 3)
    right.set_xticks(ticks + 0.5, [str(tick) for tick in ticks])
    right.set_yticks(ticks + 0.5, [str(tick) for tick in ticks])
    right.set_xlabel("j (token of the reward)")
    right.set_ylabel("t (token of the advantage)")
    right.set_title("Three samples in one row: independent")
    figure.colorbar(image, ax=right, label=r"$\partial \hat A_t / \partial r_j$ (no unit)")


def lambdas(rewards: np.ndarray, values: np.ndarray, advantages: np.ndarray, strip: Sequence[float]) -> None:
    """Draws a rollout, and below it its advantages for each lambda."""
    figure = plt.figure(figsize=(12.5, 5))
    grid = figure.add_gridspec(2, len(strip), height_ratios=[1, 1.25])
    row, top = np.arange(len(rewards)), figure.add_subplot(grid[0, :])
    top.bar(row, rewards, color=LIGHT, edgecolor="black", linewidth=0.5, label=r"reward $r_t$")
    top.plot(np.arange(len(values)), values, color=DARK, linewidth=2, label=r"critic's $V(s_t)$")
    top.axhline(0, color="black", linewidth=0.6)
    top.set_xlim(-1, len(rewards) + 1)
    top.set_xlabel("t (step)")
    top.set_ylabel("reward, value\n(in units of reward)")
    top.legend(ncols=2, loc="lower left")
    below = [figure.add_subplot(grid[1, 0])]
    below += [figure.add_subplot(grid[1, i], sharex=below[0], sharey=below[0]) for i in range(1, len(strip))]
    for i, axes in enumerate(below):
        a = advantages[:, i]
        axes.fill_between(row, a, where=a >= 0, interpolate=True, color=LIGHT, linewidth=0)
        axes.fill_between(row, a, where=a <= 0, interpolate=True, color=DARK, linewidth=0)
        axes.plot(row, a, color="black", linewidth=0.8)
        axes.set_title(f"$\\lambda = {strip[i]:g}$")
        axes.set_xlabel("t (step)")
        axes.tick_params(labelleft=i == 0)
    below[0].set_ylabel("advantage\n(in units of reward)")
    figure.suptitle(r"A small $\lambda$ credits single steps, a large one long stretches")
