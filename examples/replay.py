"""Draws the results of a training run: the learning curve, and an episode of the robot as an animated GIF.

Pillow alone draws the GIF, without a display, OpenGL or a network. A robot is a few spheres, capsules and boxes, so a
painter's algorithm is enough: project all bodies and paint them from the farthest to the nearest. The camera follows
the robot; a checkerboard on the ground shows the motion.
"""

import functools
import pathlib
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, SMOOTHING = 480, 320, 2  # pixels; every frame is painted larger and scaled down, which smooths edges
CAMERA_DIRECTION = np.array([-0.35, -1.0, 0.42])  # from the robot: +x, forward, runs to the right of the picture
BACKGROUND, TILE, SHADOW, INK = (
    np.array(rgb) for rgb in [(238, 241, 245), (204, 212, 222), (158, 167, 180), (40, 48, 60)]
)
STATIC, *MOVING = (
    np.array(rgb) for rgb in [(140, 148, 160), (222, 110, 50), (236, 160, 70), (60, 130, 160), (80, 165, 150)]
)
PLANE, SPHERE, CAPSULE, ELLIPSOID, CYLINDER, BOX = 0, 2, 3, 4, 5, 6  # MuJoCo's mjtGeom


class Geom(NamedTuple):
    """A rigid shape over time: `[T, 3]` positions and `[T, 3, 3]` rotations."""

    kind: int
    position: np.ndarray
    rotation: np.ndarray
    size: np.ndarray
    color: np.ndarray

    def ends(self, t: int) -> np.ndarray:
        """The two ends of its axis, `[2, 3]`; the same point twice for a sphere."""
        half = self.rotation[t, :, 2] * (self.size[1] if self.kind in (CAPSULE, CYLINDER) else 0.0)
        return self.position[t] + np.stack([-half, half])


class Camera(NamedTuple):
    """A pinhole camera."""

    position: np.ndarray
    axes: np.ndarray  # rows: right, down, forward

    @classmethod
    def looking_at(cls, target: np.ndarray, distance: float) -> "Camera":
        """Returns a camera at some distance from `target`, which is in the middle of the picture."""
        backward = CAMERA_DIRECTION / np.linalg.norm(CAMERA_DIRECTION)
        right = np.cross([0.0, 0.0, 1.0], backward)
        right /= np.linalg.norm(right)
        return cls(target + distance * backward, np.stack([right, -np.cross(backward, right), -backward]))

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps points `[..., 3]` to pixels `[..., 2]` and pixels per metre `[...]`, negative behind the camera."""
        right, down, forward = np.moveaxis((points - self.position) @ self.axes.T, -1, 0)
        scale = 1.5 * HEIGHT * SMOOTHING / forward
        middle = np.array([WIDTH, 1.1 * HEIGHT]) * SMOOTHING / 2
        return middle + np.stack([right, down], axis=-1) * scale[..., None], scale


class Episode(NamedTuple):
    """An episode of a robot."""

    system: Any  # Brax's System, which holds the shapes of the robot
    dt: float  # seconds per step
    position: np.ndarray  # [T, links, 3], positions of the links
    rotation: np.ndarray  # [T, links, 4], rotations of the links as quaternions, real part first
    returns: np.ndarray  # [T], the sum of rewards so far


def draw_curve(path: pathlib.Path, title: str, rows: np.ndarray, untrained: float, trained: float) -> None:
    """Draws the return of training (column 1) over steps (column 0), and the returns of both evaluations."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(trained, color="tab:green", linestyle="--", label=f"evaluation after training: {trained:.0f}")
    axes.axhline(untrained, color="tab:gray", linestyle="--", label=f"evaluation before training: {untrained:.0f}")
    axes.plot(rows[:, 0], rows[:, 1], color="tab:blue", label="training, actions with noise")
    axes.set(title=title, xlabel="environment steps", ylabel="episode return (sum of rewards)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def write_page(path: pathlib.Path, episode: Episode) -> None:
    """Writes the page of Brax's viewer. The browser loads the viewer from the network."""
    from brax.base import Transform
    from brax.io import html

    poses = zip(episode.position, episode.rotation, strict=True)
    states: Any = [
        types.SimpleNamespace(x=Transform(*pose)) for pose in poses
    ]  # the page reads nothing else of a State
    html.save(str(path), episode.system.tree_replace({"opt.timestep": episode.dt}), states)


def draw_episode(path: pathlib.Path, title: str, episode: Episode) -> None:
    """Draws the first ten seconds of an episode as a GIF that loops for ever."""
    dt = episode.dt
    stride = max(1, round(0.05 / dt))  # about 20 pictures a second
    steps = range(0, min(len(episode.position), round(10 / dt)), stride)
    position, rotation = episode.position[steps], episode.rotation[steps]
    geoms = _geoms(episode.system, position, rotation)
    ground = _ground_height(episode.system, geoms)
    ends = np.concatenate([geom.ends(0) for geom in geoms])
    reach, height = float(np.ptp(ends, axis=0).max()) / 2, (ends[:, 2].min() + ends[:, 2].max()) / 2
    track = _smooth(position[:, 0])
    frames = []
    for t, step in enumerate(steps):
        camera = Camera.looking_at(np.array([track[t, 0], track[t, 1], height]), 7 * reach)
        image = Image.new("RGB", (WIDTH * SMOOTHING, HEIGHT * SMOOTHING), _rgb(BACKGROUND))
        canvas = ImageDraw.Draw(image)
        _paint_ground(canvas, camera, track[t], ground, reach)
        for geom in geoms:
            _paint_shadow(canvas, camera, geom, t, ground)
        for geom in sorted(geoms, key=lambda g: camera.project(g.position[t])[1]):
            (_paint_box if geom.kind == BOX else _paint_capsule)(canvas, camera, geom, t)
        progress = f"step {step}, {step * dt:.1f} s, x = {position[t, 0, 0]:z.1f} m, return {episode.returns[step]:.0f}"
        canvas.multiline_text((20, 16), f"{title}\n{progress}", fill=_rgb(INK), font=_font(14), spacing=8)
        frames.append(image.resize((WIDTH, HEIGHT), Image.Resampling.BOX))
    palette = _palette()
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    duration = 10 * round(100 * stride * dt)  # a GIF counts hundredths of a second
    indexed[0].save(path, save_all=True, append_images=indexed[1:], duration=max(20, duration), loop=0)


def _geoms(system: Any, position: np.ndarray, rotation: np.ndarray) -> list[Geom]:
    """Returns the robot's shapes in the frame of the world."""
    fields = system.geom_type, system.geom_bodyid, system.geom_pos, system.geom_quat, system.geom_size
    geoms = []
    for kind, body, offset, turn, size in zip(*map(np.asarray, fields), strict=True):
        if kind not in (SPHERE, CAPSULE, ELLIPSOID, CYLINDER, BOX):
            continue
        link, local = body - 1, _matrix(turn)
        if link < 0:  # bolted to the world
            here, turned, color = (
                np.zeros((len(position), 3)),
                np.broadcast_to(np.eye(3), (len(position), 3, 3)),
                STATIC,
            )
        else:
            here, turned = position[:, link], _matrix(rotation[:, link])
            color = MOVING[min(_depth(system.link_parents, link), len(MOVING) - 1)]
        geoms.append(Geom(kind, here + turned @ offset, turned @ local, size, color))
    return geoms


def _depth(parents: Sequence[int], link: int) -> int:
    """Counts the joints between a link and the root of its tree."""
    return 0 if parents[link] < 0 else 1 + _depth(parents, parents[link])


def _ground_height(system: Any, geoms: Sequence[Geom]) -> float:
    """Returns the height of the floor or, where a robot has none, of its lowest point in the episode."""
    floors = np.asarray(system.geom_pos)[np.asarray(system.geom_type) == PLANE]
    if len(floors):
        return float(floors[0, 2])
    return float(min(g.ends(t)[:, 2].min() - g.size[0] for g in geoms for t in range(len(g.position))))


def _matrix(quaternion: np.ndarray) -> np.ndarray:
    """Turns unit quaternions `[..., 4]` into rotation matrices `[..., 3, 3]`."""
    w, x, y, z = np.moveaxis(np.asarray(quaternion, float), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def _smooth(track: np.ndarray, width: int = 15) -> np.ndarray:
    """Averages positions over neighbouring frames, which keeps the camera steady."""
    padded = np.pad(track, ((width // 2, width // 2), (0, 0)), mode="edge")
    return np.stack([np.convolve(axis, np.full(width, 1 / width), mode="valid") for axis in padded.T], axis=-1)


def _paint_ground(canvas: ImageDraw.ImageDraw, camera: Camera, middle: np.ndarray, height: float, reach: float) -> None:
    """Paints a checkerboard that fades out with distance, with the x of every fifth row of tiles written on it."""
    side, count, tick = 10.0 ** np.round(np.log10(reach)), 14, np.array([0, 6])
    first = np.floor(middle[:2] / side).astype(int) - count
    tiles = first + np.stack(np.meshgrid(*[np.arange(2 * count + 1)] * 2), axis=-1).reshape(-1, 2)
    tiles = tiles[tiles.sum(axis=1) % 2 == 0]
    fades = 1 - np.linalg.norm((tiles + 0.5) * side - middle[:2], axis=1) / (count * side)
    corners = (tiles[:, None] + np.array([(0, 0), (1, 0), (1, 1), (0, 1)])) * side
    pixels, scales = camera.project(np.insert(corners, 2, height, axis=-1))
    for fade, polygon, scale in zip(fades, pixels, scales, strict=True):
        if fade > 0 and (scale > 0).all():
            canvas.polygon(_polygon(polygon), fill=_rgb(BACKGROUND + fade * (TILE - BACKGROUND)))
    for i in range(first[0], first[0] + 2 * count + 1):
        pixel, scale = camera.project(np.array([i * side, middle[1] + 2 * reach, height]))
        if i % 5 == 0 and scale > 0:
            canvas.line(_polygon(np.stack([pixel - tick, pixel + tick])), fill=_rgb(SHADOW), width=3)
            canvas.text((pixel[0], pixel[1] + 10), f"{i * side:g} m", _rgb(SHADOW), _font(12), anchor="mt")


def _paint_shadow(canvas: ImageDraw.ImageDraw, camera: Camera, geom: Geom, t: int, ground: float) -> None:
    ends = geom.ends(t) * [1, 1, 0] + [0, 0, ground]
    pixels, scale = camera.project(ends)
    _paint_stadium(canvas, pixels, scale * geom.size[0], SHADOW, flatten=0.5)


def _paint_capsule(canvas: ImageDraw.ImageDraw, camera: Camera, geom: Geom, t: int) -> None:
    """Paints a sphere or capsule as three stripes: outline, body, highlight."""
    pixels, scale = camera.project(geom.ends(t))
    radii = scale * geom.size[0]
    for width, shade in (1.0, 0.55), (0.84, 1.0), (0.4, 1.25):
        shift = (1 - width) * radii[:, None] * [-0.3, -0.45]  # the light comes from the upper left
        _paint_stadium(canvas, pixels + shift, width * radii, np.minimum(255, shade * geom.color))


def _paint_stadium(
    canvas: ImageDraw.ImageDraw, pixels: np.ndarray, radii: np.ndarray, color: np.ndarray, flatten: float = 1.0
) -> None:
    """Paints two discs and the area between them."""
    for (x, y), r in zip(pixels, radii, strict=True):
        canvas.ellipse((x - r, y - r * flatten, x + r, y + r * flatten), fill=_rgb(color))
    along = (pixels[1] - pixels[0]) / [1, flatten]
    if length := np.hypot(*along):
        across = np.array([-along[1], along[0]]) / length * [1, flatten]
        a, b = pixels + across * radii[:, None], pixels - across * radii[:, None]
        canvas.polygon(_polygon(np.stack([a[0], a[1], b[1], b[0]])), fill=_rgb(color))


def _paint_box(canvas: ImageDraw.ImageDraw, camera: Camera, geom: Geom, t: int) -> None:
    """Paints the sides of a box that face the camera."""
    for axis in range(3):
        normal, u, v = np.roll(geom.rotation[t].T * geom.size[:, None], -axis, axis=0)
        for side in normal, -normal:
            middle = geom.position[t] + side
            if side @ (camera.position - middle) > 0:
                corners = middle + np.array([u + v, u - v, -u - v, v - u])
                shade = 0.75 + 0.35 * side[2] / np.linalg.norm(side)
                canvas.polygon(_polygon(camera.project(corners)[0]), fill=_rgb(np.minimum(255, shade * geom.color)))


def _palette() -> Image.Image:
    """Returns the colors of the GIF: the colors above and some between them, for smooth edges."""

    def blend(color: np.ndarray, count: int) -> list[np.ndarray]:
        return [BACKGROUND + share * (color - BACKGROUND) for share in np.linspace(0, 1, count)]

    colors = blend(TILE, 24) + blend(SHADOW, 6) + blend(INK, 6)
    for color in (STATIC, *MOVING):
        colors += [*blend(0.55 * color, 4), *(np.minimum(255, shade * color) for shade in (0.75, 1.0, 1.25))]
    palette = Image.new("P", (1, 1))
    palette.putpalette([channel for color in colors for channel in _rgb(color)])
    return palette


def _polygon(points: np.ndarray) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points]


def _rgb(color: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(c) for c in color)
    return red, green, blue


@functools.cache
def _font(points: int) -> Any:
    return ImageFont.load_default(points * SMOOTHING)
