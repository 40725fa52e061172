"""Drawing for the procedural scenes: an anti-aliased canvas over all frames, and the silent backdrop.

World coordinates run over [0, 1] from left to right and from bottom to top.
"""

from collections.abc import Sequence

from jaxtyping import Float, UInt8
import numpy as np

FLOOR = 0.15  # height of the floor's edge

Values = np.ndarray | float  # one value, or one per frame


class Canvas:
    """A canvas that paints all frames at once.

    `x` (T, 1, W) and `y` (T, H, 1) are the world coordinates of the pixels, `pixels_per_unit` (T, 1, 1) their density,
    `rgb` (3, T, H, W) the colours in [0, 1].
    """

    def __init__(
        self,
        times: Float[np.ndarray, " T"],
        x: Float[np.ndarray, "T 1 W"],
        y: Float[np.ndarray, "T H 1"],
        pixels_per_unit: Float[np.ndarray, "T 1 1"],
        rgb: Float[np.ndarray, "3 T H W"],
    ):
        self.times, self.x, self.y, self.pixels_per_unit, self.rgb = times, x, y, pixels_per_unit, rgb
        self.opacity = np.ones((len(times), 1, 1), np.float32)

    def part(self, left: float, right: float, opacity: Float[np.ndarray, " T"]) -> "Canvas":
        """A view of the columns that show the world between `left` and `right` in any frame; fewer columns paint faster.

        `opacity` multiplies that of everything painted on the view.
        """
        seen = np.flatnonzero(((self.x >= left) & (self.x <= right)).any((0, 1)))
        columns = slice(seen[0], seen[-1] + 1) if seen.size else slice(0, 0)
        part = Canvas(self.times, self.x[..., columns], self.y, self.pixels_per_unit, self.rgb[..., columns])
        part.opacity = over_time(opacity)
        return part

    def disc(self, x: Values, y: Values, radius: Values, radius_y: Values | None = None) -> Float[np.ndarray, "T H W"]:
        """Coverage in [0, 1] of an ellipse; `radius_y` defaults to `radius`."""
        radius, radius_y = over_time(radius), over_time(radius if radius_y is None else radius_y)
        u, v = (self.x - over_time(x)) / radius, (self.y - over_time(y)) / radius_y
        return self._coverage((np.sqrt(u * u + v * v) - 1.0) * np.minimum(radius, radius_y))

    def box(
        self, x: Values, y: Values, half_width: Values, half_height: Values, angle: Values = 0.0
    ) -> Float[np.ndarray, "T H W"]:
        """Coverage in [0, 1] of a rectangle, rotated by `angle` radians."""
        u, v = self.x - over_time(x), self.y - over_time(y)
        if np.any(angle):
            cos, sin = np.cos(over_time(angle)), np.sin(over_time(angle))
            u, v = cos * u + sin * v, cos * v - sin * u
        return self._coverage(np.maximum(np.abs(u) - over_time(half_width), np.abs(v) - over_time(half_height)))

    def _coverage(self, distance: np.ndarray) -> np.ndarray:
        return np.clip(0.5 - distance * self.pixels_per_unit, 0.0, 1.0)

    def paint(
        self, coverage: Float[np.ndarray, "T H #W"], colour: Sequence[Values] | np.ndarray, opacity: Values = 1.0
    ) -> None:
        """Blends `colour` (three channels, each one value or one per frame) over the canvas."""
        alpha = coverage * (self.opacity * over_time(opacity))
        for channel, value in zip(self.rgb, colour):
            channel += alpha * (over_time(value) - channel)


def over_time(value: Values) -> Float[np.ndarray, "T 1 1"]:
    """Values per frame in a shape that broadcasts over pixels, float32."""
    return np.asarray(value, np.float32).reshape(-1, 1, 1)


def vary_colour(
    rng: np.random.Generator, colour: tuple[float, float, float], by: float = 0.07
) -> Float[np.ndarray, " 3"]:
    """A colour in [0, 1] near `colour`: scaled by up to 15 percent, then each channel moved by up to `by`."""
    return np.clip(np.asarray(colour) * rng.uniform(0.85, 1.15) + rng.uniform(-by, by, 3), 0.0, 1.0)


class Backdrop:
    """Everything silent: wall, floor, floating shapes, camera and light."""

    def __init__(self, rng: np.random.Generator):
        self.wall, self.floor = rng.uniform(0.3, 0.6) + rng.uniform(-0.1, 0.1, (2, 3))
        self.floor = self.floor * rng.uniform(0.5, 0.8)
        self.texture = rng.uniform(0.0, 0.06)
        self.waves, self.phases = rng.uniform(5.0, 25.0, 2), rng.uniform(0, 2 * np.pi, 2)
        self.shapes = [self._shape(rng) for _ in range(rng.integers(0, 3))]
        self.drift = rng.uniform(-0.05, 0.05, 2)
        self.zoom, self.zoom_rate = rng.uniform(0.95, 1.05), rng.uniform(-0.03, 0.03)
        self.shake, self.shake_hz = rng.choice((0.0, 0.008), p=(0.6, 0.4)), rng.uniform(3.0, 9.0, 2)
        self.gain, self.tint = rng.uniform(0.8, 1.15), rng.uniform(0.93, 1.07, 3)
        self.flicker, self.flicker_hz = rng.uniform(0.0, 0.06), rng.uniform(0.5, 4.0)

    @staticmethod
    def _shape(rng):
        colour = vary_colour(rng, ((0.75, 0.3, 0.75), (0.35, 0.75, 0.35), (0.9, 0.6, 0.65))[rng.integers(3)])
        start, speed = rng.uniform((0.0, 0.55), (1.0, 0.95)), rng.uniform(-0.2, 0.2)
        return colour, start, speed, rng.uniform(0.04, 0.08), rng.uniform(0.3, 1.0), rng.random() < 0.5

    def canvas(self, times: Float[np.ndarray, " T"], px: int, duration: float) -> Canvas:
        """The empty stage as the camera sees it at `times`, in `px` x `px` pixels; `duration` is the clip's length."""
        centred = times / duration - 0.5
        x, y = self.drift[:, None] * centred * 2 + self.shake * np.sin(2 * np.pi * self.shake_hz[:, None] * times)
        zoom = over_time(self.zoom + self.zoom_rate * centred)
        offsets = ((np.arange(px) + 0.5) / px - 0.5).astype(np.float32)
        columns = 0.5 + over_time(x) + offsets[None, None, :] / zoom
        rows = 0.5 + over_time(y) - offsets[None, :, None] / zoom
        wave = np.sin(self.waves[0] * columns + self.phases[0]) * np.sin(self.waves[1] * rows + self.phases[1])
        shade = self.texture * wave.astype(np.float32)
        canvas = Canvas(times, columns, rows, px * zoom, np.stack([shade + np.float32(value) for value in self.wall]))
        for colour, (left, height), speed, size, sway_hz, is_round in self.shapes:
            at_x, at_y = left + speed * times, height + 0.05 * np.sin(2 * np.pi * sway_hz * times)
            turned = 9.0 * speed * times
            box = canvas.box(at_x, at_y, size, 0.6 * size, turned)
            canvas.paint(canvas.disc(at_x, at_y, size) if is_round else box, colour)
        canvas.paint(np.clip((FLOOR - rows) * canvas.pixels_per_unit + 0.5, 0.0, 1.0), self.floor)
        return canvas

    def expose(self, canvas: Canvas) -> UInt8[np.ndarray, "T H W 3"]:
        """The finished frames under the scene's light."""
        light = 255 * self.gain * (1.0 + self.flicker * np.sin(2 * np.pi * self.flicker_hz * canvas.times))
        frames = np.empty((*canvas.rgb.shape[1:], 3), np.uint8)
        for channel, (rgb, tint) in enumerate(zip(canvas.rgb, self.tint)):
            frames[..., channel] = np.clip(rgb * over_time(light * tint), 0.0, 255.0)
        return frames
