"""Charts of a report: inline SVG that takes the page's text colour and font, and one example as a PNG."""

from collections.abc import Sequence
import colorsys
import io
import math
import re
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
import numpy as np

from msg_jax.clip import ClipSpec
from msg_jax.evaluation.labels import Systems, describe, number, system_label

_INK = "#010203"  # a placeholder for the page's text colour, which follows the reader's light or dark theme


def class_colours(classes: int) -> list[str]:
    """One colour per class, evenly spaced in hue, light and deep in turn, all bright enough for a dark ground."""
    rgb = [colorsys.hls_to_rgb(index / classes, 0.75 if index % 2 else 0.58, 0.9) for index in range(classes)]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in rgb]


def event_chart(rows: list[dict], systems: Systems, metric: str = "event_f1") -> str | None:
    """The metric of every row with its interval: one line per system, one colour per guidance scale."""
    points = [(row, number(row.get(metric))) for row in rows]
    points = [(row, value) for row, value in points if value is not None]
    if not points:
        return None
    names = list(dict.fromkeys(row["system"] for row, _ in points))
    scales = list(dict.fromkeys(row.get("guidance") for row, _ in points))
    middle = (len([scale for scale in scales if scale is not None]) - 1) / 2
    figure, axes = _figure(8, 0.8 + 0.4 * len(names))
    for index, scale in enumerate(sorted(scales, key=lambda scale: (scale is None, scale))):
        mine = [(row, value) for row, value in points if row.get("guidance") == scale]
        offset = 0 if scale is None else 0.2 * (index - middle)
        heights = [names.index(row["system"]) + offset for row, _ in mine]
        bounds = [row[metric] if isinstance(row[metric], dict) else {} for row, _ in mine]
        reach = [(max(0, n - b.get("low", n)), max(0, b.get("high", n) - n)) for (_, n), b in zip(mine, bounds)]
        label = "no guidance" if scale is None else f"guidance {scale:g}"
        style = dict(fmt="o", markersize=4, elinewidth=1.4, color=_INK if scale is None else f"C{index}", label=label)
        axes.errorbar([value for _, value in mine], heights, xerr=np.array(reach).T, **style)
    axes.set_yticks(range(len(names)), [system_label(name, systems) for name in names])
    axes.set(xlim=(0, 1), ylim=(len(names) - 0.5, -0.5), xlabel=describe(metric)["label"])
    axes.grid(axis="x", color=_INK, alpha=0.12)
    if len(scales) > 1:
        figure.legend(frameon=False, labelcolor=_INK, loc="outside upper left", ncols=len(scales), fontsize=9)
    return _svg(figure, salt="event chart")


def gain_chart(rows: list[dict], systems: Systems, metric: str = "event_f1") -> str | None:
    """The metric minus the base's of the same seed, over guidance scales, one line per system; None if there is no base.

    Points are means over seeds, bars their standard errors where there are several seeds.
    """
    found = {(row["system"], row.get("seed"), row.get("guidance")): number(row.get(metric)) for row in rows}
    scales = sorted({scale for system, _, scale in found if system == "base" and scale is not None})
    seeds = list(dict.fromkeys(seed for system, seed, _ in found if system == "base"))
    lines = {}
    for name in dict.fromkeys(row["system"] for row in rows if row["system"] != "base"):
        pairs = np.array([
            [(found.get((name, seed, scale)), found["base", seed, scale]) for scale in scales] for seed in seeds
        ], np.float64)
        if pairs.size and np.isfinite(pairs).all():
            lines[name] = pairs[..., 0] - pairs[..., 1]  # (seeds, scales)
    if len(scales) < 2 or not lines:
        return None
    figure, axes = _figure(8, 3.6)
    axes.axhline(0, color=_INK, alpha=0.5, linewidth=1)
    for index, (name, gains) in enumerate(lines.items()):
        error = gains.std(axis=0, ddof=1) / math.sqrt(len(seeds)) if len(seeds) > 1 else None
        at = np.array(scales) + 0.012 * (index - (len(lines) - 1) / 2)  # so that bars do not overlap
        marks = "o-" if index < 10 else "s--"  # matplotlib has ten colours
        axes.errorbar(at, gains.mean(axis=0), yerr=error, fmt=marks, markersize=4, linewidth=1.4, elinewidth=1,
                      color=f"C{index}", label=system_label(name, systems))
    axes.set_xticks(scales, [f"{scale:g}" for scale in scales])
    axes.set(xlabel="Guidance", ylabel=f"{describe(metric)['label']}, minus the base's")
    axes.yaxis.label.set_color(_INK)
    axes.grid(axis="y", color=_INK, alpha=0.12)
    figure.legend(frameon=False, labelcolor=_INK, loc="outside right upper", fontsize=9)
    return _svg(figure, salt="gain chart")


def example(example: dict[str, Any], spec: ClipSpec, class_names: Sequence[str], systems: Systems, frames: int = 12) -> bytes:
    """A PNG of one of `report.write_report`'s examples: frames over time, then each system's log-mel with its events.

    Circles are true events, triangles detected ones, coloured by class.
    """
    tracks, colours = example["tracks"], class_colours(len(class_names))
    figure = Figure(figsize=(10, 1.1 + 1.15 * len(tracks)), layout="constrained")
    axes = figure.subplots(1 + len(tracks), 1, sharex=True)
    shown = example["frames"][np.linspace(0, len(example["frames"]) - 1, frames).round().astype(int)]
    axes[0].imshow(np.concatenate(list(shown), axis=1), extent=(0, spec.duration_sec, 0, 1), aspect="auto")
    axes[0].set_title(example["caption"], fontsize=9)
    levels = np.concatenate([np.ravel(track["mel"]) for track in tracks])
    low, high = np.quantile(levels, [0.02, 0.998])
    for row, track in zip(axes[1:], tracks):
        row.imshow(track["mel"].T, origin="lower", extent=(0, spec.duration_sec, 0, 1), aspect="auto", cmap="bone",
                   vmin=low, vmax=high)
        for events, height, marker in ((example["events"], 0.92, "o"), (track["detected"], 0.08, "^")):
            row.scatter(events[:, 1], np.full(len(events), height), marker=marker, s=22, edgecolors="white", linewidths=0.4,
                        color=[colours[int(label)] for label in events[:, 0]])
        row.set_ylabel(system_label(track["name"], systems), rotation=0, ha="right", va="center", fontsize=9)
    for row in axes:
        row.set_yticks([])
    axes[-1].set_xlabel("seconds", fontsize=9)
    image = io.BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    return image.getvalue()


def curves(stage: str, log: list[dict[str, float]]) -> list[tuple[str, str]]:
    """(metric, SVG) of every number in a training log over its steps."""
    metrics = dict.fromkeys(name for row in log for name, value in row.items() if name != "step" and _is_number(value))
    figures = []
    for name in metrics:
        points = np.array([(row["step"], row[name]) for row in log if _is_number(row.get(name))])
        points = points[:: max(1, len(points) // 300)]  # finer than the pixels of the figure
        figure, axes = _figure(3.4, 1.9)
        axes.plot(*points.T, marker="o" if len(points) < 12 else None, markersize=3, linewidth=1.5, color="C0")
        axes.grid(color=_INK, alpha=0.12)
        axes.locator_params(nbins=4)
        figures.append((name, _svg(figure, salt=f"{stage}/{name}")))
    return figures


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.tick_params(colors=_INK, labelsize=9, length=2)
    axes.xaxis.label.set_color(_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=_INK, alpha=0.35)
    return figure, axes


def _svg(figure: Figure, salt: str) -> str:
    """The figure as an inline SVG element. The `salt` keeps the hashed names of its shapes apart from other figures'."""
    FigureCanvasSVG(figure)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    element = text.getvalue()
    element = element[element.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'<g id="[^"]*"', "<g", element)
    element = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", element, count=1)
    element = re.sub(r'<svg([^>]*?) height="[^"]*"', r"<svg\1", element, count=1)
    element = re.sub(r"font: (\S+) [^;\"]*", r"font-size: \1", element)
    return element.replace(_INK, "currentColor")
