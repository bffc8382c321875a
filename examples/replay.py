"""Draws the results of a training run: the learning curve, and an episode of the robot as an animated GIF.

Pillow alone draws the GIF, without a display, OpenGL or a network. Every body is a thick line with round ends, painted
from the farthest to the nearest. The camera follows the robot; lines on the ground, with their x, show the motion.
"""

import pathlib
import types
from typing import Any, NamedTuple

import numpy as np

WIDTH, HEIGHT, SMOOTHING = 480, 320, 2  # pixels; every frame is painted larger and scaled down, which smooths edges
PAPER, GROUND, SHADOW, INK = (238, 241, 245), (212, 219, 228), (180, 189, 201), (40, 48, 60)
COLORS = ((222, 110, 50), (236, 160, 70), (60, 130, 160), (80, 165, 150))  # by the number of joints to the root
PLANE, SPHERE, CAPSULE, ELLIPSOID, CYLINDER, BOX = 0, 2, 3, 4, 5, 6  # MuJoCo's mjtGeom
CAMERA = np.array([[0.94, -0.33, 0.0], [-0.12, -0.34, -0.93], [-0.31, -0.88, 0.36]])  # right, down, towards the camera


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
    if title.startswith("PPO on ant"):
        axes.plot([], [], " ", label="(the ant earns 1 per step for standing still: 1,000 per episode)")
    axes.set(title=title, xlabel="environment steps", ylabel="episode return (sum of rewards)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def draw(directory: pathlib.Path, title: str, robot: Any, film: Film) -> None:
    """Writes replay.gif, the first ten seconds of an episode, and replay.html, all of it in Brax's viewer."""
    from brax.base import Transform
    from brax.io import html

    if not hasattr(robot, "sys"):
        return  # the environment `fast` has no body
    dt = float(robot.dt)
    frames = _frames(title, robot.sys, dt, film)
    frames[0].save(directory / "replay.gif", save_all=True, append_images=frames[1:], duration=50, loop=0)
    poses = zip(film.position, film.rotation, strict=True)
    states: Any = [types.SimpleNamespace(x=Transform(*pose)) for pose in poses]  # the page reads no more of a State
    html.save(str(directory / "replay.html"), robot.sys.tree_replace({"opt.timestep": dt}), states)


def _frames(title: str, system: Any, dt: float, film: Film) -> list[Any]:
    """Paints twenty pictures a second."""
    from PIL import Image, ImageDraw, ImageFont

    steps = np.arange(0, min(len(film.returns) * dt, 10), 0.05) / dt
    steps = np.minimum(steps.round().astype(int), len(film.returns) - 1)
    ends, radii, colors = _bodies(system, film.position[steps], film.rotation[steps])
    floors = np.asarray(system.geom_pos)[np.asarray(system.geom_type) == PLANE, 2]
    floor = floors[0] if len(floors) else ends[..., 2].min()
    track = np.pad(film.position[steps, 0], ((7, 7), (0, 0)), mode="edge")  # the root, smoothed over 15 frames
    track = np.lib.stride_tricks.sliding_window_view(track, 15, axis=0).mean(axis=-1)
    track[:, 2] = ends[0, :, :, 2].mean()
    reach = np.ptp(ends[0].reshape(-1, 3), axis=0).max() / 2
    zoom, side = 0.22 * HEIGHT * SMOOTHING / reach, 10.0 ** np.round(np.log10(reach))
    font, frames = ImageFont.load_default(14 * SMOOTHING), []
    for t, step in enumerate(steps):

        def pixels(points: np.ndarray, middle: np.ndarray = track[t]) -> np.ndarray:
            return np.array([WIDTH, 1.1 * HEIGHT]) * SMOOTHING / 2 + zoom * (points - middle) @ CAMERA[:2].T

        image = Image.new("RGB", (WIDTH * SMOOTHING, HEIGHT * SMOOTHING), PAPER)
        canvas = ImageDraw.Draw(image)
        for i in range(int(track[t, 0] / side) - 20, int(track[t, 0] / side) + 20):
            line = pixels(np.array([[i * side, track[t, 1] + y * reach, floor] for y in (-3, 3)])).ravel().tolist()
            canvas.line(line, fill=GROUND, width=3)
            if i % 5 == 0:
                canvas.text((line[2], line[3]), f"{i * side:g} m", SHADOW, font, anchor="mb")
        for line, radius in zip(ends[t] * [1, 1, 0] + [0, 0, floor], radii, strict=True):
            _paint(canvas, pixels(line), zoom * radius, SHADOW)
        for body in np.argsort(ends[t].mean(axis=1) @ CAMERA[2]):
            _paint(canvas, pixels(ends[t, body]), zoom * radii[body], tuple(int(0.6 * c) for c in colors[body]))
            _paint(canvas, pixels(ends[t, body]), 0.8 * zoom * radii[body], colors[body])
        x = film.position[step, 0, 0]
        text = f"{title}\nstep {step}, {step * dt:.1f} s, x = {x:z.1f} m, return {film.returns[step]:,.0f}"
        canvas.multiline_text((20, 16), text, fill=INK, font=font, spacing=8)
        frames.append(image.resize((WIDTH, HEIGHT), Image.Resampling.BOX).quantize(64, dither=Image.Dither.NONE))
    return frames


def _bodies(system: Any, position: np.ndarray, rotation: np.ndarray) -> tuple[np.ndarray, list[float], list[Any]]:
    """Returns the ends of the robot's bodies, `[T, bodies, 2, 3]`, radii and colors. A box is its longest axis."""
    fields = system.geom_type, system.geom_bodyid, system.geom_pos, system.geom_quat, system.geom_size
    bodies = []
    for kind, link, offset, turn, size in zip(*map(np.asarray, fields), strict=True):
        if kind not in (SPHERE, CAPSULE, ELLIPSOID, CYLINDER, BOX):
            continue
        axis = np.argmax(size) if kind == BOX else 2
        half = {SPHERE: 0.0, BOX: size[axis]}.get(kind, size[1]) * np.eye(3)[axis]
        ends, parent, color = offset + _rotate(turn, np.stack([-half, half])), link - 1, SHADOW
        if link:  # otherwise bolted to the world
            ends = position[:, link - 1, None] + _rotate(rotation[:, link - 1, None], ends)
            joints = 0
            while (parent := system.link_parents[parent]) >= 0:
                joints += 1
            color = COLORS[min(joints, 3)]
        ends = np.broadcast_to(ends, (len(position), 2, 3))
        bodies.append((ends, float(np.median(size) if kind == BOX else size[0]), color))
    ends, radii, colors = zip(*bodies, strict=True)
    return np.stack(ends, axis=1), list(radii), list(colors)


def _rotate(quaternion: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Rotates vectors by unit quaternions."""
    w, axis = quaternion[..., :1], quaternion[..., 1:]
    turned = 2 * np.cross(axis, vector)
    return vector + w * turned + np.cross(axis, turned)


def _paint(canvas: Any, line: np.ndarray, radius: float, color: Any) -> None:
    """Paints a thick line with round ends."""
    for x, y in line:
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    canvas.line(line.ravel().tolist(), fill=color, width=round(2 * radius))
