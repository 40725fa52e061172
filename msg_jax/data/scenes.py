"""Procedural multi-event scenes with exact event times: the embedded default data set.

A scene is a small stage with one to three performers, each of which sounds by a visible cause: balls of four materials
strike the floor (modal synthesis, ballistic bounces with restitution), a lamp flashes as it beeps, a rotor hums at a
pitch set by its angular speed, drops splash into a basin, a walker's feet land. In some scenes one performer leaves in
mid-clip and another enters. The camera drifts, the light varies, silent shapes float by.

Both streams are sampled from the same functions of time, so picture and sound agree below the frame and the sample.
World coordinates run over [0, 1] from left to right and from bottom to top; times are seconds from the clip's start.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np
from scipy import fft

from msg_jax.clip import ClipSpec

CLASS_NAMES = ("wood", "metal", "glass", "thud", "lamp", "motor", "splash", "footsteps")
SPLITS = ("train", "validation", "test")
MAX_EVENTS = 48

_TRANSITION_SHARE = 0.37
_MAX_PER_PERFORMER = MAX_EVENTS // 4  # three performers at once, one more after a transition
_LAST_ONSET_SEC = 0.1  # nothing starts later than this before its performer goes: it could not be heard out
_FADE_SEC = 0.15  # a performer that enters or leaves fades
_GRAVITY = 6.25  # world heights per second squared: a fall through half the picture takes 0.4 s
_FLOOR = 0.15
_LANES = (0.2, 0.5, 0.8)
_LANE_WIDTH = 0.36
_PIXELS_AT_ONCE = 2**17  # frames are drawn in chunks that stay in the processor's cache
_AUDIBLE_DB = 30.0  # an event ends when its sound has fallen this far


@dataclasses.dataclass(frozen=True)
class Slot:
    """A performer's place on the stage: `x`, and from `start` to `stop` seconds."""

    x: float
    start: float
    stop: float
    enters: bool = False
    leaves: bool = False

    def presence(self, times: np.ndarray) -> np.ndarray:
        """Opacity in [0, 1] at `times`."""
        opacity = np.ones_like(times)
        if self.enters:
            opacity = np.clip((times - self.start) / _FADE_SEC, 0.0, 1.0)
        if self.leaves:
            opacity = opacity * np.clip((self.stop - times) / _FADE_SEC + 1.0, 0.0, 1.0)
        return opacity


class Canvas:
    """Anti-aliased painting of all frames at once: arrays are (frames, height, width), colours channel by channel."""

    def __init__(self, times, x, y, pixels_per_unit, rgb):
        self.times, self.x, self.y, self.pixels_per_unit, self.rgb = times, x, y, pixels_per_unit, rgb
        self.opacity = np.ones((len(times), 1, 1), np.float32)

    def part(self, left: float, right: float, opacity: np.ndarray) -> "Canvas":
        """The columns that ever show the world between `left` and `right`: painting less is faster."""
        seen = np.flatnonzero(((self.x >= left) & (self.x <= right)).any((0, 1)))
        columns = slice(seen[0], seen[-1] + 1) if seen.size else slice(0, 0)
        part = Canvas(self.times, self.x[..., columns], self.y, self.pixels_per_unit, self.rgb[..., columns])
        part.opacity = _over_time(opacity)
        return part

    def disc(self, x, y, radius, radius_y=None) -> np.ndarray:
        """Coverage in [0, 1] of an ellipse."""
        radius, radius_y = _over_time(radius), _over_time(radius if radius_y is None else radius_y)
        u, v = (self.x - _over_time(x)) / radius, (self.y - _over_time(y)) / radius_y
        return self._coverage((np.sqrt(u * u + v * v) - 1.0) * np.minimum(radius, radius_y))

    def box(self, x, y, half_width, half_height, angle=0.0) -> np.ndarray:
        """Coverage in [0, 1] of a rectangle, turned by `angle` radians."""
        u, v = self.x - _over_time(x), self.y - _over_time(y)
        if np.any(angle):
            cos, sin = np.cos(_over_time(angle)), np.sin(_over_time(angle))
            u, v = cos * u + sin * v, cos * v - sin * u
        return self._coverage(np.maximum(np.abs(u) - _over_time(half_width), np.abs(v) - _over_time(half_height)))

    def _coverage(self, distance: np.ndarray) -> np.ndarray:
        return np.clip(0.5 - distance * self.pixels_per_unit, 0.0, 1.0)

    def paint(self, coverage: np.ndarray, colour, opacity=1.0) -> None:
        alpha = coverage * (self.opacity * _over_time(opacity))
        for channel, value in zip(self.rgb, colour):
            channel += alpha * (_over_time(value) - channel)


def _over_time(value) -> np.ndarray:
    return np.asarray(value, np.float32).reshape(-1, 1, 1)


def _vary(rng: np.random.Generator, colour: tuple, by: float = 0.07) -> np.ndarray:
    return np.clip(np.asarray(colour) * rng.uniform(0.85, 1.15) + rng.uniform(-by, by, 3), 0.0, 1.0)


def _modes(hz: int, frequencies_hz, decays_sec, gains) -> np.ndarray:
    """A sum of decaying sinusoids, until the slowest has fallen by 60 dB."""
    frequencies_hz, decays_sec, gains = map(np.asarray, (frequencies_hz, decays_sec, gains))
    audible = frequencies_hz < 0.45 * hz
    pole = (2j * np.pi * frequencies_hz - 1.0 / decays_sec)[audible] / hz
    # exp(p (a K + b)) = exp(p a K) exp(p b): two short tables and a product instead of one exponential per sample
    block = 128
    blocks = int(np.ceil(6.9 * decays_sec.max() * hz / block))
    coarse = gains[audible] * np.exp(np.outer(np.arange(blocks) * block, pole))
    # einsum, not @: BLAS threads cost more than they bring on arrays this small, far more on a busy machine
    return np.einsum("am,mb->ab", coarse, np.exp(np.outer(pole, np.arange(block)))).imag.ravel()


def _noise(rng: np.random.Generator, hz: int, low_hz: float, high_hz: float, decay_sec: float) -> np.ndarray:
    """A decaying burst of noise between two frequencies, about 1 at its peak."""
    samples = int(6.9 * decay_sec * hz)
    spectrum = fft.rfft(rng.standard_normal(samples, np.float32))
    frequencies = np.fft.rfftfreq(samples, 1.0 / hz)
    spectrum *= 1.0 / (1.0 + (low_hz / (frequencies + 1.0)) ** 6 + (frequencies / high_hz) ** 6)
    noise = fft.irfft(spectrum, samples)
    return noise / (3.0 * noise.std()) * np.exp(-np.arange(samples) / (decay_sec * hz))


def _audible_sec(decay_sec: float) -> float:
    return decay_sec * _AUDIBLE_DB / 20.0 * np.log(10.0)


class Performer:
    """One source: decides its events when made, then plays and draws them without further choices about time."""

    sustained = False  # whether it sounds from onset to offset, or is struck and dies away

    def __init__(self, rng: np.random.Generator, slot: Slot):
        self.rng, self.slot = rng, slot
        self.events: list[tuple[float, float]] = []  # (onset, offset) in seconds
        self.gain = 10.0 ** (rng.uniform(-7.0, 0.0) / 20.0)

    @property
    def last_onset(self) -> float:
        return self.slot.stop - _LAST_ONSET_SEC

    def spread_onsets(self, first: tuple, gap: tuple) -> np.ndarray:
        """Times from `slot.start` + U(first) on, U(gap) apart, that can be heard out."""
        gaps = self.rng.uniform(*gap, _MAX_PER_PERFORMER)
        times = self.slot.start + self.rng.uniform(*first) + np.cumsum(gaps) - gaps[0]
        return times[times <= self.last_onset]

    def sound(self, event: int, hz: int) -> np.ndarray:
        """The waveform of one event from its onset on."""
        raise NotImplementedError

    def draw(self, canvas: Canvas) -> None:
        raise NotImplementedError

    def draw_light(self, canvas: Canvas) -> None:
        """What falls beyond the performer's own lane."""


class Ball(Performer):
    """Falls, bounces ever lower, rests, is lifted and falls again."""

    colour: tuple
    radius: tuple
    restitution: tuple

    def __init__(self, rng, slot):
        super().__init__(rng, slot)
        self.size = rng.uniform(*self.radius)
        self.drift = rng.uniform(-0.03, 0.03)
        self.tone, self.spin = _vary(rng, self.colour), rng.uniform(-4.0, 4.0)
        self.voice = self.make_voice(rng)
        while True:  # until no impact falls where it could not be heard out, and one does before
            path, impacts = self._throw(rng)
            onsets = [time for time, _ in impacts]
            if onsets and onsets[0] <= self.last_onset and not any(self.last_onset < t < slot.stop for t in onsets):
                break
        self.path = np.array(path).T
        heard = [(time, speed) for time, speed in impacts if time <= self.last_onset]
        self.speeds = [speed for _, speed in heard]
        self.events = [(time, time + _audible_sec(self.voice[1].max())) for time, _ in heard]

    def _throw(self, rng):
        """Returns pieces (time, height, velocity, acceleration) of the path and impacts (time, speed)."""
        bounce, top = rng.uniform(*self.restitution), rng.uniform(0.4, 0.65)
        now = self.slot.start + rng.uniform(0.05, 0.6)
        path, impacts = [(-1.0, top, 0.0, 0.0)], []
        while now < self.slot.stop and len(impacts) < _MAX_PER_PERFORMER:
            path.append((now, top, 0.0, -_GRAVITY))
            now += np.sqrt(2.0 * top / _GRAVITY)
            speed = np.sqrt(2.0 * top * _GRAVITY)
            impacts.append((now, speed))
            while 2.0 * bounce * speed / _GRAVITY > 0.22 and len(impacts) < _MAX_PER_PERFORMER:
                speed *= bounce
                path.append((now, 0.0, speed, -_GRAVITY))
                now += 2.0 * speed / _GRAVITY
                impacts.append((now, speed))
            path.append((now, 0.0, 0.0, 0.0))
            now += rng.uniform(0.15, 0.5)
            top, lift_sec = rng.uniform(0.4, 0.65), rng.uniform(0.25, 0.4)
            path.append((now, 0.0, top / lift_sec, 0.0))
            now += lift_sec
        path.append((now, top, 0.0, 0.0))
        return path, impacts

    def height(self, times: np.ndarray) -> np.ndarray:
        start, height, velocity, acceleration = self.path[:, np.searchsorted(self.path[0], times, "right") - 1]
        since = times - start
        return height + velocity * since + 0.5 * acceleration * since**2

    def sound(self, event, hz):
        frequencies, decays, gains = self.voice
        speed = self.speeds[event]
        # a harder blow is louder and brighter; where it lands changes the balance of the modes
        loudness = (speed / 2.8) ** (0.4 + 0.4 * frequencies / frequencies.max())
        return _modes(hz, frequencies, decays, gains * loudness * self.rng.uniform(0.7, 1.3, gains.size))

    def draw(self, canvas):
        height = self.height(canvas.times)
        self.draw_ball(canvas, self.slot.x + self.drift * (canvas.times - self.slot.start), height)

    def make_voice(self, rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frequencies, decay times and gains of the material's modes."""
        raise NotImplementedError

    def draw_ball(self, canvas, x, height):
        raise NotImplementedError


class Wood(Ball):
    """A banded brown block; the modes of a short bar, quickly damped."""

    colour, radius, restitution = (0.55, 0.32, 0.12), (0.075, 0.095), (0.5, 0.65)

    def make_voice(self, rng):
        ratios = np.array([1.0, 2.76, 5.4])
        return rng.uniform(420, 700) * ratios, rng.uniform(0.022, 0.035) / np.sqrt(ratios), np.array([1.0, 0.6, 0.35])

    def draw_ball(self, canvas, x, height):
        y, angle = _FLOOR + self.size + height, self.spin * height  # it lands flat
        canvas.paint(canvas.box(x, y, self.size, self.size, angle), self.tone)
        canvas.paint(canvas.box(x, y, self.size, self.size * 0.3, angle), self.tone * 0.45)


class Metal(Ball):
    """A steel ball with a highlight; inharmonic modes that ring on."""

    colour, radius, restitution = (0.6, 0.62, 0.68), (0.07, 0.095), (0.55, 0.7)

    def make_voice(self, rng):
        ratios = np.array([1.0, 1.59, 2.3, 3.17, 4.4, 5.9]) * rng.uniform(0.98, 1.02, 6)
        decays = rng.uniform(0.13, 0.2) / ratios**0.3
        return rng.uniform(700, 1100) * ratios, decays, np.array([0.7, 0.6, 0.6, 0.5, 0.4, 0.3])

    def draw_ball(self, canvas, x, height):
        y = _FLOOR + self.size + height
        canvas.paint(canvas.disc(x, y, self.size), self.tone * 0.4)
        canvas.paint(canvas.disc(x, y, self.size * 0.8), self.tone)
        canvas.paint(canvas.disc(x - 0.35 * self.size, y + 0.35 * self.size, self.size * 0.35), (1.0, 1.0, 1.0))


class Glass(Ball):
    """A clear shell, seen by its cyan rim; high modes, damped faster than metal's."""

    colour, radius, restitution = (0.55, 0.95, 1.0), (0.085, 0.11), (0.45, 0.6)

    def make_voice(self, rng):
        ratios = np.array([1.0, 1.47, 2.09, 2.56])
        decays = rng.uniform(0.05, 0.08) / np.sqrt(ratios)
        return rng.uniform(2300, 3100) * ratios, decays, np.array([1.0, 0.7, 0.5, 0.3])

    def draw_ball(self, canvas, x, height):
        y = _FLOOR + self.size + height
        outer, inner = canvas.disc(x, y, self.size), canvas.disc(x, y, self.size * 0.55)
        canvas.paint(np.maximum(outer - inner, 0.0), self.tone, 0.9)
        canvas.paint(inner, (0.8, 1.0, 1.0), 0.25)


class Thud(Ball):
    """A heavy crimson sack that flattens when it lands; two low modes and dull noise."""

    colour, radius, restitution = (0.65, 0.08, 0.14), (0.105, 0.13), (0.42, 0.58)

    def make_voice(self, rng):
        return rng.uniform(75, 120) * np.array([1.0, 1.7]), np.array([0.055, 0.035]), np.array([1.0, 0.6])

    def sound(self, event, hz):
        body = super().sound(event, hz)
        dull = _noise(self.rng, hz, 40.0, 260.0, 0.02)
        body[: dull.size] += 0.5 * dull[: body.size]
        return body

    def draw_ball(self, canvas, x, height):
        flat = 0.4 * np.exp(-height / 0.025)
        tall = self.size * (1.0 - flat)
        canvas.paint(canvas.disc(x, _FLOOR + tall + height, self.size * (1.0 + 0.6 * flat), tall), self.tone)


class Lamp(Performer):
    """A street lamp whose bulb lights up, and its surroundings with it, for as long as it beeps."""

    sustained = True

    def __init__(self, rng, slot):
        super().__init__(rng, slot)
        self.pitch_hz = rng.uniform(900.0, 1700.0)
        self.tall, self.size = rng.uniform(0.4, 0.6), rng.uniform(0.075, 0.1)
        self.colour = _vary(rng, (1.0, 0.88, 0.35))
        self.gain *= 0.45
        onsets = self.spread_onsets((0.1, 0.6), (0.45, 1.1))
        self.events = [(onset, onset + rng.uniform(0.1, 0.26)) for onset in onsets]

    def sound(self, event, hz):
        onset, offset = self.events[event]
        time = np.arange(int((offset - onset) * hz)) / hz
        ramp = np.clip(np.minimum(time, time[-1] - time) / 0.004, 0.0, 1.0)
        return ramp * sum(np.sin(2 * np.pi * k * self.pitch_hz * time) / k for k in (1, 3))

    def lit(self, times: np.ndarray) -> np.ndarray:
        onsets, offsets = np.array(self.events).T[:, :, None]
        # a frame gathers light for 40 ms around its time, so a flash between two frames dims the nearer one
        return np.clip(np.minimum(times - onsets, offsets - times) / 0.04 + 0.5, 0.0, 1.0).max(0)

    def draw(self, canvas):
        lit, y = self.lit(canvas.times), _FLOOR + self.tall
        canvas.paint(canvas.box(self.slot.x, _FLOOR + self.tall / 2, 0.016, self.tall / 2), (0.12, 0.12, 0.12))
        bulb = [0.3 + lit * (value - 0.3) for value in self.colour]
        canvas.paint(canvas.disc(self.slot.x, y, self.size * 1.25), (0.15, 0.15, 0.15))
        canvas.paint(canvas.disc(self.slot.x, y, self.size), bulb)

    def draw_light(self, canvas):
        distance = np.square(canvas.x - self.slot.x) + np.square(canvas.y - _FLOOR - self.tall)
        canvas.paint(np.exp(-distance / 0.05), self.colour, 0.5 * self.lit(canvas.times))


class Motor(Performer):
    """A rotor with one orange and one white blade; its hum follows its angular speed."""

    sustained = True
    _spin_up_sec, _spin_down_sec = 0.15, 0.2

    def __init__(self, rng, slot):
        super().__init__(rng, slot)
        self.gain *= 0.3
        self.y, self.size = _FLOOR + rng.uniform(0.22, 0.4), rng.uniform(0.13, 0.16)
        self.angle, self.sign = rng.uniform(0, 2 * np.pi), rng.choice((-1.0, 1.0))
        self.idle_hz, self.hz_per_turn = rng.uniform(70, 100), rng.uniform(45, 60)
        self.housing = _vary(rng, (0.15, 0.4, 0.2))
        self.turns: list[float] = []  # top speed of each run, turns per second
        now = slot.start + rng.uniform(0.1, 0.6)
        while len(self.turns) < _MAX_PER_PERFORMER:
            run = min(rng.uniform(0.42, 0.8), slot.stop - 0.05 - now)
            if run < 0.4:
                break
            self.events.append((now, now + run))
            self.turns.append(rng.uniform(2.0, 5.0))
            now += run + rng.uniform(0.25, 0.5)

    def speed(self, times: np.ndarray) -> np.ndarray:
        """Turns per second."""
        onsets, offsets = np.array(self.events).T[:, :, None]
        ramp = np.minimum((times - onsets) / self._spin_up_sec, (offsets - times) / self._spin_down_sec)
        return (np.clip(ramp, 0.0, 1.0) * np.array(self.turns)[:, None]).sum(0)

    def sound(self, event, hz):
        onset, offset = self.events[event]
        time = np.arange(int((offset - onset) * hz)) / hz
        pitch = self.idle_hz + self.hz_per_turn * self.speed(onset + time)
        phase = 2 * np.pi * np.cumsum(pitch) / hz
        loudness = np.clip(np.minimum(time / 0.02, (time[-1] - time) / 0.08), 0.0, 1.0)
        return loudness * sum(np.sin(k * phase) / k for k in range(1, 6))

    def draw(self, canvas):
        x, grid = self.slot.x, np.arange(0.0, self.slot.stop + 0.1, 0.005)
        turned = np.interp(canvas.times, grid, np.cumsum(self.speed(grid)) * 0.005)
        angle = self.angle + self.sign * 2 * np.pi * turned
        canvas.paint(canvas.box(x, (_FLOOR + self.y) / 2, 0.05, (self.y - _FLOOR) / 2), self.housing)
        for side, colour in ((0.5, (1.0, 0.5, 0.05)), (-0.5, (0.95, 0.95, 0.95))):
            dx, dy = side * self.size * np.cos(angle), side * self.size * np.sin(angle)
            canvas.paint(canvas.box(x + dx, self.y + dy, self.size * 0.5, 0.034, angle), colour)
        canvas.paint(canvas.disc(x, self.y, 0.035), (0.1, 0.1, 0.1))


class Splash(Performer):
    """Drops fall into a blue basin, which throws up spray; a burst of bright noise and a rising bubble."""

    _decay_sec = 0.06

    def __init__(self, rng, slot):
        super().__init__(rng, slot)
        self.top, self.width = rng.uniform(0.55, 0.75), rng.uniform(0.12, 0.15)
        self.blue = _vary(rng, (0.1, 0.3, 0.85), 0.05)
        self.bubble_hz = rng.uniform(500, 800)
        self.fall_sec = np.sqrt(2 * self.top / _GRAVITY)
        self.onsets = self.spread_onsets((0.15, 0.7), (0.5, 1.1))
        self.events = [(onset, onset + _audible_sec(self._decay_sec)) for onset in self.onsets]

    def sound(self, event, hz):
        burst = _noise(self.rng, hz, 1500.0, 6500.0, self._decay_sec)
        time = np.arange(burst.size) / hz
        phase = 2 * np.pi * self.bubble_hz * (time + 4.0 * time**2)
        return burst + 0.25 * np.sin(phase) * np.exp(-time / self._decay_sec)

    def draw(self, canvas):
        x, surface = self.slot.x, _FLOOR + 0.02
        since = canvas.times[:, None] - self.onsets
        until = np.where(since < 0, -since, np.inf).min(1)
        since = np.where(since >= 0, since, np.inf).min(1)
        wet = np.exp(-since / 0.1)
        canvas.paint(canvas.disc(x, surface, self.width, 0.05), [v + (1.0 - v) * 0.6 * wet for v in self.blue])
        y = surface + self.top - 0.5 * _GRAVITY * np.maximum(self.fall_sec - until, 0.0) ** 2
        canvas.paint(canvas.disc(x, y, 0.036, 0.05), (0.55, 0.75, 1.0), np.isfinite(until))
        spray = np.where(np.isfinite(since), since, 0.0)
        rise = 1.3 * spray - 0.5 * _GRAVITY * spray**2
        for side in (-1.0, 1.0):
            drop = canvas.disc(x + side * (0.05 + 0.3 * spray), surface + 0.03 + rise, 0.03)
            canvas.paint(drop, (0.9, 0.97, 1.0), np.isfinite(since) & (rise >= 0.0))


class Footsteps(Performer):
    """A walker who lifts one foot after the other; heel, then toe."""

    _decay_sec = 0.02

    def __init__(self, rng, slot):
        super().__init__(rng, slot)
        self.jacket, self.trousers = _vary(rng, (0.95, 0.75, 0.1)), _vary(rng, (0.2, 0.2, 0.45))
        self.stride, self.heel_hz = rng.uniform(-0.015, 0.015), rng.uniform(350, 600)
        onsets, now = [], slot.start + rng.uniform(0.25, 0.7)
        gap = rng.uniform(0.4, 0.58)
        while now <= self.last_onset and len(onsets) < _MAX_PER_PERFORMER:
            onsets.append(now)
            now += gap * rng.uniform(0.95, 1.05) + (rng.random() < 0.2) * rng.uniform(0.3, 0.6)
        self.onsets = np.array(onsets)
        self.step_sec = 0.9 * gap
        self.events = [(onset, onset + 0.06 + _audible_sec(self._decay_sec)) for onset in onsets]

    def sound(self, event, hz):
        heel = _noise(self.rng, hz, self.heel_hz, 3 * self.heel_hz, self._decay_sec)
        toe = _noise(self.rng, hz, 2 * self.heel_hz, 6 * self.heel_hz, 0.7 * self._decay_sec)
        step = np.concatenate([heel, np.zeros(int(0.06 * hz))])
        start = int(0.06 * hz)
        step[start : start + toe.size] += 0.4 * toe
        return step

    def draw(self, canvas):
        landed = np.searchsorted(self.onsets, canvas.times, "right")
        to_go = np.append(self.onsets, np.inf)[landed] - canvas.times
        progress = np.clip(1.0 - to_go / self.step_sec, 0.0, 1.0)  # of the foot in the air; it lands at full speed
        lift = 4.0 * progress * (1.0 - progress)
        x = self.slot.x + self.stride * (landed + progress)
        body = _FLOOR + 0.2 + 0.03 * lift
        for foot in (0, 1):
            foot_x, foot_y = x + (foot - 0.5) * 0.12, _FLOOR + 0.03 + 0.12 * lift * (landed % 2 == foot)
            canvas.paint(canvas.box(foot_x, (foot_y + body) / 2, 0.025, (body - foot_y) / 2), self.trousers)
            canvas.paint(canvas.box(foot_x + 0.01, foot_y, 0.05, 0.028), (0.05, 0.05, 0.05))
        canvas.paint(canvas.box(x, body + 0.1, 0.075, 0.11), self.jacket)
        canvas.paint(canvas.disc(x, body + 0.27, 0.06), (0.9, 0.68, 0.55))


PERFORMERS = (Wood, Metal, Glass, Thud, Lamp, Motor, Splash, Footsteps)  # in the order of CLASS_NAMES


class Backdrop:
    """Wall, floor, silent floating shapes, camera and light: all that makes no sound."""

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
        colour = _vary(rng, ((0.75, 0.3, 0.75), (0.35, 0.75, 0.35), (0.9, 0.6, 0.65))[rng.integers(3)])
        start, speed = rng.uniform((0.0, 0.55), (1.0, 0.95)), rng.uniform(-0.2, 0.2)
        return colour, start, speed, rng.uniform(0.04, 0.08), rng.uniform(0.3, 1.0), rng.random() < 0.5

    def canvas(self, times: np.ndarray, px: int, duration: float) -> Canvas:
        """An empty stage seen by the camera at `times`."""
        centred = times / duration - 0.5
        x, y = self.drift[:, None] * centred * 2 + self.shake * np.sin(2 * np.pi * self.shake_hz[:, None] * times)
        zoom = _over_time(self.zoom + self.zoom_rate * centred)
        offsets = ((np.arange(px) + 0.5) / px - 0.5).astype(np.float32)
        columns = 0.5 + _over_time(x) + offsets[None, None, :] / zoom
        rows = 0.5 + _over_time(y) - offsets[None, :, None] / zoom
        wave = np.sin(self.waves[0] * columns + self.phases[0]) * np.sin(self.waves[1] * rows + self.phases[1])
        shade = self.texture * wave.astype(np.float32)
        canvas = Canvas(times, columns, rows, px * zoom, np.stack([shade + np.float32(value) for value in self.wall]))
        for colour, (left, height), speed, size, sway_hz, is_round in self.shapes:
            at_x, at_y = left + speed * times, height + 0.05 * np.sin(2 * np.pi * sway_hz * times)
            turned = 9.0 * speed * times
            box = canvas.box(at_x, at_y, size, 0.6 * size, turned)
            canvas.paint(canvas.disc(at_x, at_y, size) if is_round else box, colour)
        canvas.paint(np.clip((_FLOOR - rows) * canvas.pixels_per_unit + 0.5, 0.0, 1.0), self.floor)
        return canvas

    def expose(self, canvas: Canvas) -> np.ndarray:
        """The finished frames (frames, height, width, 3) uint8 under the scene's light."""
        light = 255 * self.gain * (1.0 + self.flicker * np.sin(2 * np.pi * self.flicker_hz * canvas.times))
        frames = np.empty((*canvas.rgb.shape[1:], 3), np.uint8)
        for channel, (rgb, tint) in enumerate(zip(canvas.rgb, self.tint)):
            frames[..., channel] = np.clip(rgb * _over_time(light * tint), 0.0, 255.0)
        return frames


def _cast(rng: np.random.Generator, duration: float) -> tuple[list[Performer], list[int], list[int]]:
    """Draws the performers, and the class indices of those there at first and of those who enter later."""
    count = rng.choice((1, 2, 3), p=(0.4, 0.4, 0.2))
    classes = rng.permutation(len(PERFORMERS))[: count + 1].tolist()
    lanes = np.array(_LANES)[rng.permutation(len(_LANES))[:count]] + rng.uniform(-0.04, 0.04, count)
    slots = [Slot(x, 0.0, duration) for x in lanes]
    entering = []
    if rng.random() < _TRANSITION_SHARE:
        change = duration * rng.uniform(0.42, 0.58)
        slots[-1] = Slot(lanes[-1], 0.0, change, leaves=True)
        slots.append(Slot(lanes[-1], change + _FADE_SEC, duration, enters=True))
        entering = classes[count:]
    performers = [PERFORMERS[kind](rng, slot) for kind, slot in zip(classes, slots)]
    return performers, classes[:count], entering


def _caption(first: list[int], entering: list[int]) -> str:
    names = [CLASS_NAMES[kind] for kind in sorted(first)]
    caption = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    return ", then ".join([caption, *(CLASS_NAMES[kind] for kind in entering)])


def _film(backdrop: Backdrop, performers: list[Performer], times: np.ndarray, px: int, duration: float) -> np.ndarray:
    chunks = []
    for some in np.array_split(times, max(1, times.size * px * px // _PIXELS_AT_ONCE)):
        canvas = backdrop.canvas(some, px, duration)
        for performer in performers:
            x, presence = performer.slot.x, performer.slot.presence(some)
            performer.draw(canvas.part(x - _LANE_WIDTH / 2, x + _LANE_WIDTH / 2, presence))
            performer.draw_light(canvas)
        chunks.append(backdrop.expose(canvas))
    return np.concatenate(chunks)


@dataclasses.dataclass(frozen=True)
class Take:
    """One event as it is played: its class, its time in seconds, and its sound from the onset on, before mixing."""

    kind: int
    onset: float
    offset: float
    sound: np.ndarray


@dataclasses.dataclass(frozen=True)
class Recording:
    """The sound of a scene before it is mixed."""

    clip: ClipSpec
    performers: dict[int, Performer]  # by class
    takes: tuple[Take, ...]
    level: float  # of the mix
    noise: np.ndarray  # (audio_samples,) float32

    def mixed(self, takes: Sequence[Take]) -> np.ndarray:
        """These and nothing else, at a level of 1, (audio_samples,)."""
        return _mixed(takes, self.clip)

    def waveform(self, takes: Sequence[Take]) -> np.ndarray:
        """What is heard if these are played, (audio_samples,) float32 in [-1, 1]."""
        return np.clip(self.level * self.mixed(takes) + self.noise, -1.0, 1.0).astype(np.float32)

    def events(self, takes: Sequence[Take]) -> np.ndarray:
        """Their list of events (MAX_EVENTS, 3), as in a record."""
        rows = [(take.kind, take.onset, min(take.offset, self.clip.duration_sec)) for take in takes]
        events = np.full((MAX_EVENTS, 3), -1.0, np.float32)
        events[: len(rows)] = sorted(rows, key=lambda row: row[1])
        return events


def _mixed(takes: Sequence[Take], clip: ClipSpec) -> np.ndarray:
    mix = np.zeros(clip.audio_samples)
    for take in takes:
        start = round(take.onset * clip.audio_hz)
        sound = take.sound[: mix.size - start]
        mix[start : start + sound.size] += sound
    return mix


def _stage(seed: int, split: str, index: int, duration: float):
    """The scene's generator, its performers, who is there at first, who enters, and all that makes no sound."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, SPLITS.index(split), index))))
    return rng, *_cast(rng, duration), Backdrop(rng)


def _record(rng: np.random.Generator, performers: dict[int, Performer], clip: ClipSpec) -> Recording:
    takes = tuple(
        Take(kind, onset, offset, performer.gain * performer.sound(index, clip.audio_hz))
        for kind, performer in performers.items() for index, (onset, offset) in enumerate(performer.events)
    )
    level = rng.uniform(0.5, 0.95) / np.abs(_mixed(takes, clip)).max()
    noise = 10.0 ** (rng.uniform(-62.0, -52.0) / 20.0) * rng.standard_normal(clip.audio_samples, np.float32)
    return Recording(clip, performers, takes, level, noise)


def record_sound(seed: int, split: str, index: int, clip: ClipSpec) -> Recording:
    """The sound of the scene that `make_scene` makes of the same arguments, event by event."""
    rng, performers, first, entering, _ = _stage(seed, split, index, clip.duration_sec)
    return _record(rng, dict(zip(first + entering, performers)), clip)


def make_scene(seed: int, split: str, index: int, clip: ClipSpec) -> dict:
    """One scene as a record; the same arguments give the same scene, other arguments an independent one.

    Returns `id`, `video` and `clip_video` (frames, px, px, 3) uint8, `waveform` (audio_samples,) float32 in [-1, 1],
    `caption`, `events` (MAX_EVENTS, 3) float32 rows (class index, onset_sec, offset_sec) by onset, class -1 marking
    unused rows, and `has_events`.
    """
    duration = clip.duration_sec
    rng, performers, first, entering, backdrop = _stage(seed, split, index, duration)
    recording = _record(rng, dict(zip(first + entering, performers)), clip)
    return {
        "id": f"scenes-{seed}-{split}-{index:06d}",
        "video": _film(backdrop, performers, np.arange(clip.video_frames) / clip.video_hz, clip.video_px, duration),
        "clip_video": _film(
            backdrop, performers, np.arange(clip.clip_video_frames) / clip.clip_video_hz, clip.clip_video_px, duration
        ),
        "waveform": recording.waveform(recording.takes),
        "caption": _caption(first, entering),
        "events": recording.events(recording.takes),
        "has_events": True,
    }


@dataclasses.dataclass(frozen=True)
class ScenesSource:
    """`size` scenes made on demand: random access, nothing on disk."""

    spec: ClipSpec
    split: str
    size: int
    seed: int = 0
    class_names: tuple[str, ...] = CLASS_NAMES
    skipped: list[dict] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.size:
            raise IndexError(f"scene {index} of {self.size}")
        return make_scene(self.seed, self.split, index, self.spec)
