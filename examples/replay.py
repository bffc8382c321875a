"""Draws the results of a training run: the learning curve, and an episode of the robot as an animated GIF.

Pillow alone draws the GIF, without a display, OpenGL or a network. Every body is a thick line with round ends, painted
from the farthest to the nearest. The camera follows the robot; the lines on the ground show the motion.
"""

import pathlib
import types
from typing import Any, NamedTuple

import numpy as np

WIDTH, HEIGHT, SMOOTHING = 480, 320, 2  # pixels; every frame is painted larger and scaled down, which smooths edges
PAPER, GROUND, SHADOW, INK = (238, 241, 245), (204, 212, 222), (180, 189, 201), (40, 48, 60)
COLORS = ((222, 110, 50), (236, 160, 70), (60, 130, 160), (80, 165, 150))  # by the number of joints to the root
PLANE, SPHERE, CAPSULE, ELLIPSOID, CYLINDER, BOX = 0, 2, 3, 4, 5, 6  # MuJoCo's mjtGeom


class Film(NamedTuple):
    """An episode of a robot over time."""

    position: np.ndarray  # [T, links, 3]
    rotation: np.ndarray  # [T, links, 4], quaternions, real part first
    returns: np.ndarray  # [T], the sum of rewards so far


class Body(NamedTuple):
    """A thick line."""

    ends: np.ndarray  # [T, 2, 3]
    radius: float
    color: tuple[int, int, int]


def draw_curve(path: pathlib.Path, title: str, rows: np.ndarray, untrained: float, trained: float) -> None:
    """Draws the return of training (column 1) over steps (column 0), and the returns of both evaluations."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(trained, color="black", linestyle="--", label=f"evaluation after training: {trained:,.0f}")
    axes.axhline(untrained, color="dimgray", linestyle=":", label=f"evaluation before training: {untrained:,.0f}")
    axes.plot(rows[:, 0], rows[:, 1], color="tab:blue", label="training, actions with noise")
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
        return  # the environment `fast` has no body to draw
    dt = float(robot.dt)
    frames = _frames(title, robot.sys, dt, film)
    frames[0].save(directory / "replay.gif", save_all=True, append_images=frames[1:], duration=50, loop=0)
    poses = zip(film.position, film.rotation, strict=True)
    states: Any = [types.SimpleNamespace(x=Transform(*pose)) for pose in poses]  # the page reads no more of a State
    html.save(str(directory / "replay.html"), robot.sys.tree_replace({"opt.timestep": dt}), states)


def _frames(title: str, system: Any, dt: float, film: Film) -> list[Any]:
    """Paints twenty pictures a second, for ten seconds."""
    from PIL import Image, ImageDraw, ImageFont

    steps = np.arange(0, min(len(film.returns) * dt, 10), 0.05) / dt
    steps = np.minimum(steps.round().astype(int), len(film.returns) - 1)
    bodies = _bodies(system, film.position[steps], film.rotation[steps])
    ends = np.stack([body.ends for body in bodies])  # [bodies, T, 2, 3]
    floors = np.asarray(system.geom_pos)[np.asarray(system.geom_type) == PLANE, 2]
    floor = floors[0] if len(floors) else min((body.ends[..., 2] - body.radius).min() for body in bodies)
    reach = np.ptp(ends[:, 0].reshape(-1, 3), axis=0).max() / 2
    window = np.ones(15) / 15  # frames over which the camera's motion is smoothed
    padded = np.pad(film.position[steps, 0], ((7, 7), (0, 0)), mode="edge")
    track = np.stack([np.convolve(padded[:, axis], window, mode="valid") for axis in range(3)], axis=-1)
    track[:, 2] = ends[:, 0, :, 2].mean()
    font, frames = ImageFont.load_default(14 * SMOOTHING), []
    for t, step in enumerate(steps):
        project = _camera(track[t], 7 * reach)
        image = Image.new("RGB", (WIDTH * SMOOTHING, HEIGHT * SMOOTHING), PAPER)
        canvas = ImageDraw.Draw(image)
        _paint_ground(canvas, project, track[t], floor, reach, font)
        flat = [Body(body.ends[t] * [1, 1, 0] + [0, 0, floor], body.radius, SHADOW) for body in bodies]
        near = sorted(
            (body._replace(ends=body.ends[t]) for body in bodies), key=lambda body: project(body.ends)[1].mean()
        )
        for body in flat + near:
            _paint(canvas, project, body)
        x = film.position[step, 0, 0]
        text = f"{title}\nstep {step}, {step * dt:.1f} s, x = {x:z.1f} m, return {film.returns[step]:,.0f}"
        canvas.multiline_text((20, 16), text, fill=INK, font=font, spacing=8)
        frames.append(image.resize((WIDTH, HEIGHT), Image.Resampling.BOX).quantize(64, dither=Image.Dither.NONE))
    return frames


def _bodies(system: Any, position: np.ndarray, rotation: np.ndarray) -> list[Body]:
    """Returns the robot's shapes; a box is a line along its longest side."""
    fields = system.geom_type, system.geom_bodyid, system.geom_pos, system.geom_quat, system.geom_size
    bodies = []
    for kind, body, offset, turn, size in zip(*map(np.asarray, fields), strict=True):
        if kind not in (SPHERE, CAPSULE, ELLIPSOID, CYLINDER, BOX):
            continue
        axis = np.argmax(size) if kind == BOX else 2
        half = {SPHERE: 0.0, BOX: size[axis]}.get(kind, size[1]) * np.eye(3)[axis]
        local = offset + _rotate(turn, np.stack([-half, half]))  # [2, 3], in the frame of the link
        if link := max(body, 0):
            depth, parent = 0, system.link_parents[link - 1]
            while parent >= 0:
                depth, parent = depth + 1, system.link_parents[parent]
            ends = position[:, link - 1, None] + _rotate(rotation[:, link - 1, None], local)
            bodies.append(Body(ends, np.median(size) if kind == BOX else size[0], COLORS[min(depth, 3)]))
        else:  # bolted to the world
            bodies.append(Body(np.broadcast_to(local, (len(position), 2, 3)), size[0], SHADOW))
    return bodies


def _rotate(quaternion: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Rotates vectors by unit quaternions."""
    w, axis = quaternion[..., :1], quaternion[..., 1:]
    turned = 2 * np.cross(axis, vector)
    return vector + w * turned + np.cross(axis, turned)


def _camera(target: np.ndarray, distance: float) -> Any:
    """Returns the projection of a pinhole camera that looks at `target`; +x runs to the right of the picture."""
    backward = np.array([-0.35, -1.0, 0.42]) / np.linalg.norm([-0.35, -1.0, 0.42])
    right = np.cross([0.0, 0.0, 1.0], backward)
    right /= np.linalg.norm(right)
    axes = np.stack([right, -np.cross(backward, right), -backward])

    def project(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps points `[..., 3]` to pixels `[..., 2]` and pixels per metre, negative behind the camera."""
        seen = (points - target - distance * backward) @ axes.T
        scale = 1.5 * HEIGHT * SMOOTHING / seen[..., 2]
        return np.array([WIDTH, 1.1 * HEIGHT]) * SMOOTHING / 2 + seen[..., :2] * scale[..., None], scale

    return project


def _paint_ground(canvas: Any, project: Any, middle: np.ndarray, floor: float, reach: float, font: Any) -> None:
    """Paints lines across the way, with the x of every fifth line."""
    side = 10.0 ** np.round(np.log10(reach))
    for i in range(int(middle[0] / side) - 15, int(middle[0] / side) + 16):
        line = np.array([[i * side, middle[1] + 4 * y * reach, floor] for y in (-1, 1)])
        pixels, scale = project(line)
        if (scale > 0).all():
            canvas.line([tuple(pixel) for pixel in pixels], fill=GROUND, width=3)
            if i % 5 == 0:
                canvas.text(tuple(pixels[1]), f"{i * side:g} m", SHADOW, font, anchor="mb")


def _paint(canvas: Any, project: Any, body: Body) -> None:
    """Paints a body with a dark outline."""
    pixels, scale = project(body.ends)
    for share, shade in ((1.0, 0.6), (0.8, 1.0)):
        color, radii = tuple(int(shade * c) for c in body.color), share * body.radius * scale
        for (x, y), r in zip(pixels, radii, strict=True):
            canvas.ellipse((x - r, y - r, x + r, y + r), fill=color)
        canvas.line([tuple(pixel) for pixel in pixels], fill=color, width=round(2 * radii.mean()))
