"""The figures of `gae_explained.ipynb`, and the figure that `bug_study.py --draw` writes.

A function draws numbers that its caller has computed. All figures can be read in grey.
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


# The formula.


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
        a = advantages[i]
        axes.fill_between(row, a, where=a >= 0, interpolate=True, color=LIGHT, linewidth=0)
        axes.fill_between(row, a, where=a <= 0, interpolate=True, color=DARK, linewidth=0)
        axes.plot(row, a, color="black", linewidth=0.8)
        axes.set_title(f"$\\lambda = {strip[i]:g}$")
        axes.set_xlabel("t (step)")
        axes.tick_params(labelleft=i == 0)
    below[0].set_ylabel("advantage\n(in units of reward)")
    figure.suptitle(r"A small $\lambda$ credits single steps, a large one long stretches")


def weights(cases: Sequence[np.ndarray], lambda_: float) -> None:
    """Draws the weights of A^(1) ... A^(n), a picture for each n, with the part that is the missing tail's."""
    figure, grid = plt.subplots(1, 3, figsize=(9.5, 2.7), sharex=True, sharey=True)
    for axes, w in zip(grid, cases, strict=True):
        n = len(w)
        axes.bar(np.arange(1, n + 1), w, color=DARK, edgecolor="black", linewidth=0.6)
        axes.bar(n, lambda_ * w[-1], bottom=(1 - lambda_) * w[-1], color="white", hatch="////")
        axes.bar(n, w[-1], color="none", edgecolor="black", linewidth=0.6)
        axes.set_title(f"{n} rows left: mean k = {w @ np.arange(1, n + 1):.1f}")
        axes.set_xticks([1, 4, 8, 12])
        axes.set_xlabel("k (steps)")
    grid[0].set_ylabel("weight of $A^{(k)}$")
    grid[0].text(3, 0.6, "hatched: the weight of\nthe missing tail")
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


# Jacobians. The size of a derivative is darkness; a negative one is hatched, so that the sign shows in grey too.

HATCHED = {"facecolor": "#cfc8e8", "edgecolor": "#4b3b8f", "hatch": "////", "linewidth": 0}


def heat(axes: Axes, jacobian: np.ndarray, boundaries: Sequence[int] = (), numbers: bool = True) -> Any:
    """Draws a Jacobian: zeros white, positive numbers dark, negative numbers hatched."""
    rows, columns = jacobian.shape
    shown = np.ma.masked_less_equal(jacobian, 0)
    image = axes.pcolormesh(shown, cmap="YlOrBr", vmin=-0.15, vmax=1.15, edgecolors="0.85", linewidth=0.5)
    for t, s in np.argwhere(jacobian < 0):
        axes.add_patch(Rectangle((s, t), 1, 1, **HATCHED))
    for t, s in np.argwhere(jacobian != 0) if numbers else ():
        value = jacobian[t, s]
        text = f"{value:.2f}".replace("0.", ".").replace("-", MINUS)
        box = {"facecolor": "white", "linewidth": 0, "pad": 0.8} if value < 0 else None
        ink = "white" if value > 0.75 else "black"
        axes.text(s + 0.5, t + 0.5, text, ha="center", va="center", fontsize=7.5, color=ink, bbox=box)
    for boundary in boundaries:
        axes.axhline(boundary, color="black", linewidth=0.9, linestyle=":")
        if columns > 1:
            axes.axvline(boundary, color="black", linewidth=0.9, linestyle=":")
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.set_aspect("equal")
    axes.spines[:].set_visible(True)
    return image


def key(figure: Figure, grid: Any, **how: Any) -> None:
    """Draws the bar of the positive derivatives, and below it what a hatched cell means."""
    bar = figure.colorbar(grid.flat[0].collections[0], ax=grid, label="positive derivative (no unit)", **how)
    bar.ax.set_ylim(0, 1)
    bar.ax.add_patch(Rectangle((0, -0.2), 1, 0.1, transform=bar.ax.transAxes, clip_on=False, **HATCHED))
    bar.ax.text(0.5, -0.23, "negative", transform=bar.ax.transAxes, ha="center", va="top")


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
        axes.text(end + 1.15, end + 0.9, f"step {end}\nterminates", va="bottom", style="italic")
        axes.text(limit + 0.85, limit + 1.1, f"step {limit} is\ntruncated", ha="right", va="top", style="italic")
    key(figure, grid, shrink=0.6)
    figure.suptitle(
        "No advantage depends on another episode; after a truncation, the value of the final observation counts"
    )


def gallery(
    marks: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], titles: Mapping[str, str], end: int, limit: int
) -> None:
    """Draws two Jacobians of each estimator; where it differs from the first one, a border, or a cross for a zero."""
    figure, grid = plt.subplots(4, 4, figsize=(13, 12.2), height_ratios=[1, 0.83, 1, 0.83])
    apart = np.zeros((len(marks["right"][0]), 1))  # between V(s_T) and V(final)
    pictures = {name: (r, np.hstack([v, apart, final[:, [limit]]])) for name, (r, v, final) in marks.items()}
    for i, (name, pair) in enumerate(pictures.items()):
        for j, picture in enumerate(pair):
            axes = grid[2 * (i // 4) + j, i % 4]
            heat(axes, picture, (end + 1, limit + 1), numbers=False)
            for t, s in np.argwhere(np.abs(picture - pictures["right"][j]) > 1e-5):
                axes.add_patch(Rectangle((s + 0.04, t + 0.04), 0.92, 0.92, fill=False, linewidth=1.8))
                if picture[t, s] == 0:
                    axes.plot(
                        [s + 0.2, s + 0.8, np.nan, s + 0.2, s + 0.8], [t + 0.2, t + 0.8, np.nan, t + 0.8, t + 0.2], "k"
                    )
            ticks = np.array([0, 3, 6, 9, 12][: 4 + j])
            axes.set_xticks(ticks + 0.5, ["final" if tick == 12 else str(tick) for tick in ticks])
            axes.set_yticks(np.array([0, 3, 6, 9]) + 0.5, ["0", "3", "6", "9"])
        top = grid[2 * (i // 4), i % 4]
        top.set_title(f"{titles[name]}\n{CONSEQUENCES[name]}")
        top.set_xlabel("j (step of the reward)")
        grid[2 * (i // 4) + 1, i % 4].set_xlabel("j (step of the value)")
    for axes in grid[:, 0]:
        axes.set_ylabel("t (step of the advantage)")
    key(figure, grid, shrink=0.3, aspect=25)
    figure.suptitle(
        r"Each bug changes $\partial \hat A_t / \partial r_j$ (rows 1 and 3) or "
        r"$\partial \hat A_t / \partial V(s_j)$ (rows 2 and 4)."
        "\n"
        "Thick border: the cell differs from the right one. Cross: it is zero, and should not be.",
        fontsize=11,
    )


CONSEQUENCES = {
    "right": "check_gae finds no mistake",
    "result in reverse": "a step has another step's advantage",
    "flag of the step before": "a termination counts one step late",
    "termination ignored": "the next episode counts too",
    "truncation as termination": "no value follows the time limit",
    "truncation not cut": "the next episode counts too",
    "V(s_t) for V(final)": "a step bootstraps from its own value",
    "λ missing on the first hop": r"later TD errors count $1/\lambda$ times",
}


# The agents of bug_study.json.


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


def learning_curves(record: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> None:
    """Draws the curves of each bug in groups: the right one, then what is loud, silent and invisible."""
    figure, grid = plt.subplots(2, 4, figsize=(12.5, 6.6), sharex=True, sharey=True)
    x, right = thousands_of_steps(record), evaluations_of(record, "right")
    names = [(group, name) for group, members in groups.items() for name in members]
    for axes, (group, name) in zip(grid.flat, names, strict=False):
        evaluations = evaluations_of(record, name)
        if name != "right":
            axes.plot(x, right.mean(0), color="0.55", linewidth=1, label="evaluation of the right one")
        axes.fill_between(x, *interval(evaluations), color=DARK, alpha=0.25, linewidth=0)
        axes.plot(x, evaluations.mean(0), color=DARK, linewidth=2, label="evaluation, up to 500 steps")
        beside = x[-1] + np.random.default_rng(0).uniform(4, 16, len(evaluations))
        axes.plot(beside, evaluations[:, -1], ".", color="0.25", markersize=3.5, label="last one of each seed")
        lengths = lengths_of(record, name).mean(0)
        axes.plot(x[1:], lengths, color=MIDDLE, linestyle="--", linewidth=2, label="training episode, up to 100")
        axes.set_title(f"{name}: median {np.median(evaluations[:, -1]):.0f}", pad=4)
        box = {"facecolor": "white", "edgecolor": "black", "linewidth": 0.6, "pad": 2.5}
        axes.text(0.03, 0.95, group, transform=axes.transAxes, va="top", fontsize=9, fontweight="bold", bbox=box)
    for axes in grid[:, 0]:
        axes.set_ylabel("steps that the pole stays up")
    for axes in (*grid[1], grid[0, 3]):
        axes.set_xlabel("training steps (thousands)")
    grid[0, 3].tick_params(labelbottom=True)
    grid[1, 3].set_axis_off()
    grid[1, 3].legend(*grid[0, 1].get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(-0.05, 1))
    figure.suptitle(
        "The training curve (dashed) shows one bug of six; with the other five it looks like an agent that learns"
    )


def dots(axes: Axes, record: Mapping[str, Any], labels: Mapping[str, str]) -> None:
    """Draws the last evaluation of each seed as a dot, the mean's interval as a bar, and the mean as a tick."""
    for i, name in enumerate(labels):
        samples = evaluations_of(record, name)[:, -1]
        jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(samples))
        axes.plot(samples, i + jitter, "o", color=LIGHT, markeredgecolor="0.3", markeredgewidth=0.5, markersize=4)
        axes.plot(interval(samples), [i, i], color=DARK, linewidth=3, solid_capstyle="butt")
        axes.plot([samples.mean()] * 2, [i - 0.36, i + 0.36], color="black", linewidth=2)
    axes.set_yticks(range(len(labels)), list(labels.values()))
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(0, 515)
    axes.set_xlabel("steps of the last evaluation (limit 500)")


def sweep(
    record: Mapping[str, Any], names: Mapping[str, float], lambdas: np.ndarray, errors: Mapping[int, np.ndarray]
) -> None:
    """Draws errors over lambda, relative to the smallest, and the evaluations of agents; `names` maps results to λ."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), width_ratios=[1, 1.2])
    for (number, error), (colour, style) in zip(errors.items(), LINES, strict=False):
        best = error.argmin()
        left.plot(lambdas, error / error[best], color=colour, linestyle=style, linewidth=2, label=f"N = {number}")
        left.plot(lambdas[best], 1, "o", color=colour, markeredgecolor="black")
    left.set_ylim(0.9, 4)
    left.set_xlabel(r"$\lambda$")
    left.set_ylabel("squared error, relative to the best")
    left.set_title("the walk, exactly (explained variance 0.17)")
    left.legend(loc="upper center")
    dots(right, record, {name: f"$\\lambda = {x:g}$" for name, x in names.items()})
    right.set_title("agents on the pole, 32 seeds each")
    figure.suptitle(r"Which $\lambda$ is best depends on the task; on this pole the largest ones are")


ORDERS = ("right", "mean of the worker", "random order of time", "result in reverse")
ORDERS += ("reverse for the policy only", "reverse for the critic only", "reverse of another worker", "all shuffled")


def orders(record: Mapping[str, Any]) -> None:
    """Draws how agents end that learnt from advantages in another order."""
    _, axes = plt.subplots(figsize=(8.5, 4.6))
    dots(axes, record, {name: name for name in ORDERS})
    axes.set_title("Which worker did well is enough to learn; without it, most agents do not")


def same_curve_worse_agent(record: Mapping[str, Any]) -> Figure:
    """Draws the figure of the README: the same training curve, a worse agent."""
    figure, (seen, got) = plt.subplots(1, 2, figsize=(7.4, 2.9), width_ratios=[1, 1.2])
    x = thousands_of_steps(record)
    labels = {
        "right": "right",
        "truncation as termination": "time limit as\ntermination",
        "truncation not cut": "time limit\nignored",
    }
    for (name, label), (colour, style) in zip(labels.items(), (LINES[2], LINES[1], ("black", "--")), strict=True):
        mean, label = lengths_of(record, name).mean(0), label.replace("\n", " ")
        seen.plot(x[1:], mean, color=colour, linestyle=style, linewidth=2, label=label)
    seen.set_ylim(0, 110)
    seen.set_xlim(0, None)
    seen.set_title("training episodes (limit 100)")
    seen.legend(loc="lower right", handlelength=2.6)
    seen.set_ylabel("steps that the pole stays up")
    seen.set_xlabel("training steps (thousands)")
    dots(got, record, labels)
    got.set_title("32 agents each, evaluated longer")
    return figure
