"""Draws the results of a training run with Matplotlib: the learning curve, and an episode of the robot."""

import pathlib
import types
from typing import Any, NamedTuple

import numpy as np

SPHERE, CAPSULE, ELLIPSOID, CYLINDER, BOX = 2, 3, 4, 5, 6  # MuJoCo's mjtGeom
COLORS = ("tab:orange", "gold", "tab:blue", "tab:cyan")  # by the number of joints between a body and the root


class Film(NamedTuple):
    """An episode of a robot over time."""

    position: np.ndarray  # [T, links, 3]
    rotation: np.ndarray  # [T, links, 4], quaternions, real part first
    returns: np.ndarray  # [T], the sum of rewards so far


def draw_curve(path: pathlib.Path, title: str, rows: np.ndarray, untrained: float, trained: float) -> None:
    """Draws the return of training (column 1) over steps (column 0), and the returns of both evaluations."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(trained, color="black", linestyle="--", label=f"evaluation after training: {trained:,.0f}")
    axes.axhline(untrained, color="black", linestyle=":", label=f"evaluation before training: {untrained:,.0f}")
    axes.plot(rows[:, 0], rows[:, 1], color="tab:blue", label="training, actions with noise")
    if "ant (" in title:
        axes.plot([], [], " ", label="(the ant earns 1 per step for standing still: 1,000 per episode)")
    axes.set(title=title, xlabel="environment steps", ylabel="episode return (sum of rewards)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def draw_episode(directory: pathlib.Path, title: str, robot: Any, film: Film) -> None:
    """Writes replay.gif, the first ten seconds of an episode, and replay.html, all of it in Brax's viewer."""
    from brax.base import Transform
    from brax.io import html
    from matplotlib.animation import FuncAnimation, PillowWriter
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    dt = float(robot.dt)
    steps = np.arange(0, min(len(film.returns), round(10 / dt)), max(1, round(0.1 / dt)))
    root = film.position[steps, 0]
    ends, radii, colors = _bodies(robot.sys, film.position[steps], film.rotation[steps])
    # The camera looks along y, a little from above: what is farther away is higher in the picture.
    across = ends[..., 1] - root[:, None, None, 1]
    lines = np.stack([ends[..., 0] + 0.3 * across, ends[..., 2] + 0.3 * across], axis=-1)  # [T, bodies, 2, 2]
    shadows = np.stack([lines[..., 0], ends[..., 2].min() + 0.3 * across], axis=-1)
    low, high = min(lines[..., 1].min(), shadows[..., 1].min()), lines[..., 1].max()
    reach = 1.5 * max(high - low, np.ptp(lines[0, ..., 0]))
    figure = Figure(figsize=(6, 3))
    axes = figure.add_axes((0, 0.12, 1, 0.78))
    axes.set(ylim=(low - 0.1 * reach, low + 0.68 * reach), yticks=[])
    axes.grid(axis="x")
    axes.xaxis.set_major_formatter("{x:g} m")
    robots: Any = axes.add_collection(LineCollection([], capstyle="round"))

    def frame(t: int) -> None:
        axes.set_xlim(root[t, 0] - reach, root[t, 0] + reach)
        far_first = np.argsort(-across[t].mean(axis=-1))
        widths = 2 * radii[far_first] * 6 * 72 / (2 * reach)  # points: 6 inches are 2 × reach
        robots.set_segments([*shadows[t, far_first], *np.repeat(lines[t, far_first], 2, axis=0)])
        robots.set_linewidth([*widths, *np.stack([widths, 0.9 * widths - 1], axis=1).ravel()])  # black is the outline
        pairs = [("black", colors[body]) for body in far_first]
        robots.set_color(["darkgray"] * len(pairs) + [color for pair in pairs for color in pair])
        axes.set_title(f"{title}: {steps[t] * dt:.1f} s, return {film.returns[steps[t]]:,.0f}", loc="left")

    FuncAnimation(figure, frame, len(steps)).save(directory / "replay.gif", PillowWriter(fps=10), dpi=80)
    poses = zip(film.position, film.rotation, strict=True)
    states: Any = [types.SimpleNamespace(x=Transform(*pose)) for pose in poses]  # the page reads no more of a State
    html.save(str(directory / "replay.html"), robot.sys.tree_replace({"opt.timestep": dt}), states)


def _bodies(system: Any, position: np.ndarray, rotation: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns the axes of all bodies, `[T, bodies, 2, 3]`, their radii and colors. A box is its longest side."""
    fields = system.geom_type, system.geom_bodyid, system.geom_pos, system.geom_quat, system.geom_size
    bodies = []
    for kind, link, offset, turn, size in zip(*map(np.asarray, fields), strict=True):
        if kind not in (SPHERE, CAPSULE, ELLIPSOID, CYLINDER, BOX):
            continue
        axis = {SPHERE: 0, BOX: np.argmax(size)}.get(kind, 2)
        half = {SPHERE: 0.01, BOX: size[axis]}.get(kind, size[1]) * np.eye(3)[axis]  # Matplotlib draws no point
        ends, joints = offset + _rotate(turn, np.stack([-half, half])), 0
        if link:  # otherwise bolted to the world
            ends = position[:, link - 1, None] + _rotate(rotation[:, link - 1, None], ends)
            while (link := system.link_parents[link - 1] + 1) > 0:
                joints += 1
        ends = np.broadcast_to(ends, (len(position), 2, 3))
        bodies.append((ends, np.median(size) if kind == BOX else size[0], COLORS[min(joints, 3)]))
    ends, radii, colors = zip(*bodies, strict=True)
    return np.stack(ends, axis=1), np.array(radii), list(colors)


def _rotate(quaternion: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Rotates vectors by unit quaternions."""
    w, axis = quaternion[..., :1], quaternion[..., 1:]
    turned = 2 * np.cross(axis, vector)
    return vector + w * turned + np.cross(axis, turned)
