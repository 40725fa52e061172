"""The sound sources of the procedural scenes. Each decides when it sounds, plays its events and draws itself.

Times are seconds from the clip's start; world coordinates are those of `scene_pictures`.
"""

import dataclasses

from jaxtyping import Float
import numpy as np

from msg_jax.data import scene_sounds
from msg_jax.data.scene_pictures import FLOOR, Canvas, vary_colour

MAX_EVENTS_EACH = 12
FADE_SEC = 0.15  # a performer that enters or leaves fades for this long

_LAST_ONSET_SEC = 0.1  # no onset in a performer's last moments: little of the sound would be left
_GRAVITY = 6.25  # world heights per second squared: a fall through half the picture takes 0.4 s


@dataclasses.dataclass(frozen=True)
class Slot:
    """A performer's place on the stage: horizontal position `x`, from `start` to `stop` seconds.

    `pause` multiplies the pauses between its events: below 1 it performs faster.
    """

    x: float
    start: float
    stop: float
    enters: bool = False
    leaves: bool = False
    pause: float = 1.0

    def presence(self, times: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
        """Opacity in [0, 1] at `times`."""
        opacity = np.ones_like(times)
        if self.enters:
            opacity = np.clip((times - self.start) / FADE_SEC, 0.0, 1.0)
        if self.leaves:
            opacity = opacity * np.clip((self.stop - times) / FADE_SEC + 1.0, 0.0, 1.0)
        return opacity


class Performer:
    """One sound source. All event times are drawn at construction; playing and drawing only follow them."""

    sustained = False  # sounds from onset to offset; False: struck, then decays

    def __init__(self, rng: np.random.Generator, slot: Slot):
        self.rng, self.slot = rng, slot
        self.events: list[tuple[float, float]] = []  # (onset, offset) in seconds
        self.gain = 10.0 ** (rng.uniform(-7.0, 0.0) / 20.0)

    @property
    def last_onset(self) -> float:
        """The latest permitted onset in seconds."""
        return self.slot.stop - _LAST_ONSET_SEC

    def spread_onsets(self, first: tuple[float, float], gap: tuple[float, float]) -> Float[np.ndarray, " E"]:
        """Onsets U(gap) seconds apart, the first U(first) after `slot.start`, none later than `last_onset`."""
        gaps = self.rng.uniform(*gap, MAX_EVENTS_EACH) * self.slot.pause
        times = self.slot.start + self.rng.uniform(*first) + np.cumsum(gaps) - gaps[0]
        return times[times <= self.last_onset]

    def sound(self, event: int, hz: int) -> Float[np.ndarray, " S"]:
        """The waveform of one event, from its onset on, before `gain`."""
        raise NotImplementedError

    def draw(self, canvas: Canvas) -> None:
        """Paints the performer on the canvas of its lane."""
        raise NotImplementedError

    def draw_light(self, canvas: Canvas) -> None:
        """Paints the light that the performer casts on the whole stage; none by default."""


class Ball(Performer):
    """A falling object: it drops, bounces until it rests, is lifted and drops again."""

    colour: tuple[float, float, float]
    radius: tuple[float, float]  # range, world units
    restitution: tuple[float, float]  # range, share of the speed that a bounce keeps

    def __init__(self, rng, slot):
        super().__init__(rng, slot)
        self.size = rng.uniform(*self.radius)
        self.drift = rng.uniform(-0.03, 0.03)
        self.tone, self.spin = vary_colour(rng, self.colour), rng.uniform(-4.0, 4.0)
        self.voice = self.make_voice(rng)
        while True:  # reject throws with an impact after `last_onset`, or with none before
            path, impacts = self._throw(rng)
            onsets = [time for time, _ in impacts]
            if onsets and onsets[0] <= self.last_onset and not any(self.last_onset < t < slot.stop for t in onsets):
                break
        self.path = np.array(path).T
        kept = [(time, speed) for time, speed in impacts if time <= self.last_onset]
        self.speeds = [speed for _, speed in kept]  # of each impact, world heights per second
        self.events = [(time, time + scene_sounds.audible_sec(self.voice[1].max())) for time, _ in kept]

    def _throw(self, rng):
        """Samples a path: ballistic pieces (time, height, velocity, acceleration) and impacts (time, speed)."""
        bounce, top = rng.uniform(*self.restitution), rng.uniform(0.4, 0.65)
        now = self.slot.start + rng.uniform(0.05, 0.6)
        path, impacts = [(-1.0, top, 0.0, 0.0)], []
        while now < self.slot.stop and len(impacts) < MAX_EVENTS_EACH:
            path.append((now, top, 0.0, -_GRAVITY))
            now += np.sqrt(2.0 * top / _GRAVITY)
            speed = np.sqrt(2.0 * top * _GRAVITY)
            impacts.append((now, speed))
            while 2.0 * bounce * speed / _GRAVITY > 0.22 and len(impacts) < MAX_EVENTS_EACH:
                speed *= bounce
                path.append((now, 0.0, speed, -_GRAVITY))
                now += 2.0 * speed / _GRAVITY
                impacts.append((now, speed))
            path.append((now, 0.0, 0.0, 0.0))
            now += rng.uniform(0.15, 0.5) * self.slot.pause
            top, lift_sec = rng.uniform(0.4, 0.65), rng.uniform(0.25, 0.4)
            path.append((now, 0.0, top / lift_sec, 0.0))
            now += lift_sec
        path.append((now, top, 0.0, 0.0))
        return path, impacts

    def height(self, times: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
        """Height of the lowest point above the floor at `times`."""
        start, height, velocity, acceleration = self.path[:, np.searchsorted(self.path[0], times, "right") - 1]
        since = times - start
        return height + velocity * since + 0.5 * acceleration * since**2

    def sound(self, event, hz):
        frequencies, decays, gains = self.voice
        speed = self.speeds[event]
        # a harder impact is louder and brighter; the point of impact changes the balance of the modes
        loudness = (speed / 2.8) ** (0.4 + 0.4 * frequencies / frequencies.max())
        return scene_sounds.modes(hz, frequencies, decays, gains * loudness * self.rng.uniform(0.7, 1.3, gains.size))

    def draw(self, canvas):
        height = self.height(canvas.times)
        self.draw_ball(canvas, self.slot.x + self.drift * (canvas.times - self.slot.start), height)

    def make_voice(
        self, rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, " modes"], Float[np.ndarray, " modes"], Float[np.ndarray, " modes"]]:
        """Frequencies (Hz), decay times (s) and gains of the material's modes."""
        raise NotImplementedError

    def draw_ball(self, canvas: Canvas, x: Float[np.ndarray, " T"], height: Float[np.ndarray, " T"]) -> None:
        """Paints the object at `x`, `height` above the floor."""
        raise NotImplementedError


class Wood(Ball):
    """A brown block with a dark band. Sounds like a short bar: few modes, quickly damped."""

    colour, radius, restitution = (0.55, 0.32, 0.12), (0.075, 0.095), (0.5, 0.65)

    def make_voice(self, rng):
        ratios = np.array([1.0, 2.76, 5.4])
        return rng.uniform(420, 700) * ratios, rng.uniform(0.022, 0.035) / np.sqrt(ratios), np.array([1.0, 0.6, 0.35])

    def draw_ball(self, canvas, x, height):
        y, angle = FLOOR + self.size + height, self.spin * height  # it lands flat
        canvas.paint(canvas.box(x, y, self.size, self.size, angle), self.tone)
        canvas.paint(canvas.box(x, y, self.size, self.size * 0.3, angle), self.tone * 0.45)


class Metal(Ball):
    """A steel ball with a highlight. Sounds with inharmonic modes that ring long."""

    colour, radius, restitution = (0.6, 0.62, 0.68), (0.07, 0.095), (0.55, 0.7)

    def make_voice(self, rng):
        ratios = np.array([1.0, 1.59, 2.3, 3.17, 4.4, 5.9]) * rng.uniform(0.98, 1.02, 6)
        decays = rng.uniform(0.13, 0.2) / ratios**0.3
        return rng.uniform(700, 1100) * ratios, decays, np.array([0.7, 0.6, 0.6, 0.5, 0.4, 0.3])

    def draw_ball(self, canvas, x, height):
        y = FLOOR + self.size + height
        canvas.paint(canvas.disc(x, y, self.size), self.tone * 0.4)
        canvas.paint(canvas.disc(x, y, self.size * 0.8), self.tone)
        canvas.paint(canvas.disc(x - 0.35 * self.size, y + 0.35 * self.size, self.size * 0.35), (1.0, 1.0, 1.0))


class Glass(Ball):
    """A clear shell with a cyan rim. Sounds with high modes, damped faster than metal's."""

    colour, radius, restitution = (0.55, 0.95, 1.0), (0.085, 0.11), (0.45, 0.6)

    def make_voice(self, rng):
        ratios = np.array([1.0, 1.47, 2.09, 2.56])
        decays = rng.uniform(0.05, 0.08) / np.sqrt(ratios)
        return rng.uniform(2300, 3100) * ratios, decays, np.array([1.0, 0.7, 0.5, 0.3])

    def draw_ball(self, canvas, x, height):
        y = FLOOR + self.size + height
        outer, inner = canvas.disc(x, y, self.size), canvas.disc(x, y, self.size * 0.55)
        canvas.paint(np.maximum(outer - inner, 0.0), self.tone, 0.9)
        canvas.paint(inner, (0.8, 1.0, 1.0), 0.25)


class Thud(Ball):
    """A heavy crimson sack that flattens when it lands. Sounds with two low modes and dull noise."""

    colour, radius, restitution = (0.65, 0.08, 0.14), (0.105, 0.13), (0.42, 0.58)

    def make_voice(self, rng):
        return rng.uniform(75, 120) * np.array([1.0, 1.7]), np.array([0.055, 0.035]), np.array([1.0, 0.6])

    def sound(self, event, hz):
        body = super().sound(event, hz)
        dull = scene_sounds.noise_burst(self.rng, hz, 40.0, 260.0, 0.02)
        body[: dull.size] += 0.5 * dull[: body.size]
        return body

    def draw_ball(self, canvas, x, height):
        flat = 0.4 * np.exp(-height / 0.025)
        tall = self.size * (1.0 - flat)
        canvas.paint(canvas.disc(x, FLOOR + tall + height, self.size * (1.0 + 0.6 * flat), tall), self.tone)


class Lamp(Performer):
    """A street lamp that beeps. Its bulb lights up, and lights its surroundings, as long as a beep lasts."""

    sustained = True

    def __init__(self, rng, slot):
        super().__init__(rng, slot)
        self.pitch_hz = rng.uniform(900.0, 1700.0)
        self.tall, self.size = rng.uniform(0.4, 0.6), rng.uniform(0.075, 0.1)
        self.colour = vary_colour(rng, (1.0, 0.88, 0.35))
        self.gain *= 0.45
        onsets = self.spread_onsets((0.1, 0.6), (0.45, 1.1))
        self.events = [(onset, onset + rng.uniform(0.1, 0.26)) for onset in onsets]

    def sound(self, event, hz):
        onset, offset = self.events[event]
        time = np.arange(int((offset - onset) * hz)) / hz
        ramp = np.clip(np.minimum(time, time[-1] - time) / 0.004, 0.0, 1.0)
        return ramp * sum(np.sin(2 * np.pi * k * self.pitch_hz * time) / k for k in (1, 3))

    def lit(self, times: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
        """Brightness of the bulb in [0, 1] at `times`."""
        onsets, offsets = np.array(self.events).T[:, :, None]
        # a frame is exposed for 40 ms around its time, so a flash between two frames still shows in the nearer one
        return np.clip(np.minimum(times - onsets, offsets - times) / 0.04 + 0.5, 0.0, 1.0).max(0)

    def draw(self, canvas):
        lit, y = self.lit(canvas.times), FLOOR + self.tall
        canvas.paint(canvas.box(self.slot.x, FLOOR + self.tall / 2, 0.016, self.tall / 2), (0.12, 0.12, 0.12))
        bulb = [0.3 + lit * (value - 0.3) for value in self.colour]
        canvas.paint(canvas.disc(self.slot.x, y, self.size * 1.25), (0.15, 0.15, 0.15))
        canvas.paint(canvas.disc(self.slot.x, y, self.size), bulb)

    def draw_light(self, canvas):
        distance = np.square(canvas.x - self.slot.x) + np.square(canvas.y - FLOOR - self.tall)
        canvas.paint(np.exp(-distance / 0.05), self.colour, 0.5 * self.lit(canvas.times))


class Motor(Performer):
    """A rotor with one orange and one white blade. Its hum rises and falls with its angular speed."""

    sustained = True
    _spin_up_sec, _spin_down_sec = 0.15, 0.2

    def __init__(self, rng, slot):
        super().__init__(rng, slot)
        self.gain *= 0.3
        self.y, self.size = FLOOR + rng.uniform(0.22, 0.4), rng.uniform(0.13, 0.16)
        self.angle, self.sign = rng.uniform(0, 2 * np.pi), rng.choice((-1.0, 1.0))
        self.idle_hz, self.hz_per_turn = rng.uniform(70, 100), rng.uniform(45, 60)
        self.housing = vary_colour(rng, (0.15, 0.4, 0.2))
        self.turns: list[float] = []  # top speed of each event, turns per second
        now = slot.start + rng.uniform(0.1, 0.6)
        while len(self.turns) < MAX_EVENTS_EACH:
            run = min(rng.uniform(0.42, 0.8), slot.stop - 0.05 - now)
            if run < 0.4:
                break
            self.events.append((now, now + run))
            self.turns.append(rng.uniform(2.0, 5.0))
            now += run + rng.uniform(0.25, 0.5) * slot.pause

    def speed(self, times: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
        """Turns per second at `times`."""
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
        canvas.paint(canvas.box(x, (FLOOR + self.y) / 2, 0.05, (self.y - FLOOR) / 2), self.housing)
        for side, colour in ((0.5, (1.0, 0.5, 0.05)), (-0.5, (0.95, 0.95, 0.95))):
            dx, dy = side * self.size * np.cos(angle), side * self.size * np.sin(angle)
            canvas.paint(canvas.box(x + dx, self.y + dy, self.size * 0.5, 0.034, angle), colour)
        canvas.paint(canvas.disc(x, self.y, 0.035), (0.1, 0.1, 0.1))


class Splash(Performer):
    """Drops that fall into a blue basin and throw up spray. Each sounds as bright noise and a rising bubble."""

    _decay_sec = 0.06

    def __init__(self, rng, slot):
        super().__init__(rng, slot)
        self.top, self.width = rng.uniform(0.55, 0.75), rng.uniform(0.12, 0.15)
        self.blue = vary_colour(rng, (0.1, 0.3, 0.85), 0.05)
        self.bubble_hz = rng.uniform(500, 800)
        self.fall_sec = np.sqrt(2 * self.top / _GRAVITY)
        self.onsets = self.spread_onsets((0.15, 0.7), (0.5, 1.1))
        self.events = [(onset, onset + scene_sounds.audible_sec(self._decay_sec)) for onset in self.onsets]

    def sound(self, event, hz):
        burst = scene_sounds.noise_burst(self.rng, hz, 1500.0, 6500.0, self._decay_sec)
        time = np.arange(burst.size) / hz
        phase = 2 * np.pi * self.bubble_hz * (time + 4.0 * time**2)
        return burst + 0.25 * np.sin(phase) * np.exp(-time / self._decay_sec)

    def draw(self, canvas):
        x, surface = self.slot.x, FLOOR + 0.02
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
    """A walker who lifts one foot after the other. A step sounds twice: heel, then toe."""

    _decay_sec = 0.02

    def __init__(self, rng, slot):
        super().__init__(rng, slot)
        self.jacket, self.trousers = vary_colour(rng, (0.95, 0.75, 0.1)), vary_colour(rng, (0.2, 0.2, 0.45))
        self.stride, self.heel_hz = rng.uniform(-0.015, 0.015), rng.uniform(350, 600)
        onsets, now = [], slot.start + rng.uniform(0.25, 0.7)
        gap = rng.uniform(0.4, 0.58) * slot.pause
        while now <= self.last_onset and len(onsets) < MAX_EVENTS_EACH:
            onsets.append(now)
            now += gap * rng.uniform(0.95, 1.05) + (rng.random() < 0.2) * rng.uniform(0.3, 0.6)
        self.onsets = np.array(onsets)
        self.step_sec = 0.9 * gap
        self.events = [(onset, onset + 0.06 + scene_sounds.audible_sec(self._decay_sec)) for onset in onsets]

    def sound(self, event, hz):
        heel = scene_sounds.noise_burst(self.rng, hz, self.heel_hz, 3 * self.heel_hz, self._decay_sec)
        toe = scene_sounds.noise_burst(self.rng, hz, 2 * self.heel_hz, 6 * self.heel_hz, 0.7 * self._decay_sec)
        step = np.concatenate([heel, np.zeros(int(0.06 * hz))])
        start = int(0.06 * hz)
        step[start : start + toe.size] += 0.4 * toe
        return step

    def draw(self, canvas):
        landed = np.searchsorted(self.onsets, canvas.times, "right")
        to_go = np.append(self.onsets, np.inf)[landed] - canvas.times
        progress = np.clip(1.0 - to_go / self.step_sec, 0.0, 1.0)  # of the foot in the air, which lands at full speed
        lift = 4.0 * progress * (1.0 - progress)
        x = self.slot.x + self.stride * (landed + progress)
        body = FLOOR + 0.2 + 0.03 * lift
        for foot in (0, 1):
            foot_x, foot_y = x + (foot - 0.5) * 0.12, FLOOR + 0.03 + 0.12 * lift * (landed % 2 == foot)
            canvas.paint(canvas.box(foot_x, (foot_y + body) / 2, 0.025, (body - foot_y) / 2), self.trousers)
            canvas.paint(canvas.box(foot_x + 0.01, foot_y, 0.05, 0.028), (0.05, 0.05, 0.05))
        canvas.paint(canvas.box(x, body + 0.1, 0.075, 0.11), self.jacket)
        canvas.paint(canvas.disc(x, body + 0.27, 0.06), (0.9, 0.68, 0.55))
