"""Results as one self-contained web page, and as a table for the terminal.

`results` is what `results.json` holds:

    {"rows": [{"system", "guidance", "split", "seed", <metric>: value, ...}, ...],
     "differences": [{"system", "baseline", "guidance", "split", "seed", <metric>: value, ...}, ...],   (optional)
     "sf_cavp": {<metric>: value, ...}, "reward": {<metric>: value, ...}}

A value is a number, `{"value", "low", "high"}` with the bounds of an interval, or None; then `<metric>_reason` beside
it says why. Rows that differ only in `seed` are shown as one: mean, standard deviation and number of seeds.
"""

import base64
from collections.abc import Sequence
import colorsys
import io
import json
import math
import re
import statistics
from typing import Any

from etils import epath
import jinja2
import matplotlib
from matplotlib import image as mpl_image
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
import numpy as np
import soundfile

from msg_jax.clip import ClipSpec
from msg_jax.data import media_writer
from msg_jax.evaluation import events

SYSTEMS = {
    "real": ("Real sound", "the recorded sound itself: what the judge scores at best"),
    "reconstructed": ("Real, through the codec", "the same, encoded and decoded: the ceiling of every generator"),
    "random_clip": ("Another clip's sound", "real sound that belongs to another video: chance"),
    "unconditional": ("No video", "the base model without any condition: chance for a generator"),
    "base": ("Base", "MM-DiT trained with conditional flow matching"),
    "avp_rpo": ("AVP-RPO", "base tuned on pairs joined of its best and worst moments, by the reward"),
    "avp_rpo_whole": ("AVP-RPO, whole candidates", "the same with the best and the worst of its candidates as they are"),
    "avp_rpo_two_rounds": ("AVP-RPO, two rounds", "the same steps, the second half on candidates of the first half's model"),
    "sync_dpo": ("SyncDPO", "base tuned against rule-made distortions of real sound, coarse ones first"),
    "sync_dpo_uniform": ("SyncDPO, no curriculum", "the same with distortions of all levels from the start"),
    "avp_rpo_sync_dpo": ("AVP-RPO, then SyncDPO", "the AVP-RPO system tuned on with SyncDPO: twice the steps"),
    "avp_rpo_midway": ("AVP-RPO, half-way", "the parameters half-way between base and AVP-RPO: no training of its own"),
    "avp_rpo_and_sync_dpo": ("AVP-RPO and SyncDPO", "base moved half of the way to either: no training of its own"),
    "soup": ("AVP-RPO, SyncDPO and continued", "base moved half of the way to each of the three: no training of its own"),
    "continue_cfm_thrice": ("Continued three times as long", "control: flow matching with the compute of the three together"),
    "longer_avp_rpo": ("Continued, with half of AVP-RPO", "the base trained on, moved by half of what AVP-RPO changed"),
    "longer_both": ("Continued, with half of both", "the same, and by half of what SyncDPO changed"),
    "oracle_midway": ("Oracle ranking, half-way", "the parameters half-way between base and the oracle's"),
    "generated": ("Generated", "the clips that are evaluated"),
    "random_pairs": ("Random pairs", "control: the AVP-RPO loss on pairs that other videos' rewards made"),
    "continue_cfm": ("Continued training", "control: flow matching continued at equal compute"),
    "oracle": ("Oracle ranking", "control: AVP-RPO with pairs made by the true events, as no system could"),
}
METRICS = {  # name: (label, direction, digits, meaning)
    "event_f1": ("Event F1", "↑", 3, "detected events with the right class within ±80 ms of a true onset"),
    "onset_f1": ("Onset F1", "↑", 3, "the same without the class: high by chance in busy scenes"),
    "event_f1_40ms": ("Event F1, 40 ms", "↑", 3, "event F1 within ±40 ms: timing to one frame of video"),
    "onset_f1_40ms": ("Onset F1, 40 ms", "↑", 3, "onset F1 within ±40 ms"),
    "class_f1": ("Class F1", "↑", 3, "which classes sound in a clip, whenever they do"),
    "fd_judge": ("FD (judge)", "↓", 2, "Fréchet distance to real sound in the features of the judge"),
    "dynamic": ("Dynamic", "↑", 3, "SF-CAVP cosine of picture and sound, step by step; tuned for, so no judge"),
    "semantic": ("Semantic", "↑", 3, "SF-CAVP cosine of whole clips; tuned for, so no judge"),
    "window": ("Window", "↑", 3, "SF-CAVP cosine of short windows; tuned for, so no judge"),
    "events": ("Events", "↑", 3, "agreement of sound events seen and heard; tuned for, so no judge"),
    "reward": ("Reward", "↑", 3, "weighted sum of the three; what AVP-RPO maximises"),
    "offset_accuracy_9": ("Offset choice", "↑", 3, "the true offset has the highest score of 9; chance .111"),
    "dynamic_r1_64": ("Dynamic R@1 of 64", "↑", 3, "a video's own sound ranks first of 64; chance .016"),
    "semantic_r1_64": ("Semantic R@1 of 64", "↑", 3, "the same by whole-clip embeddings; chance .016"),
    "within_video_correlation": ("Within-video correlation", "↑", 3, "reward and event F1 among a video's candidates"),
    "within_video_rank_correlation": ("Within-video rank correlation", "↑", 3, "the same by ranks (Spearman)"),
    "headroom_share": ("Headroom share", "↑", 3, "gain of the reward's choice over a random one; the oracle's is 1"),
    "correlation_semantic": ("Correlation, semantic term", "↑", 3, "the same for one term of the reward alone"),
    "correlation_dynamic": ("Correlation, dynamic term", "↑", 3, "the same for one term of the reward alone"),
    "correlation_window": ("Correlation, window term", "↑", 3, "the same for one term of the reward alone"),
    "correlation_events": ("Correlation, events term", "↑", 3, "the same for one term of the reward alone"),
    "best_beats_worst": ("Best beats worst", "↑", 3, "its top candidate is better than its bottom one; chance .5"),
    "best_beats_worst_half": ("Best beats worst, half", "↑", 3, "the same where top and bottom differ most"),
    "best_beats_worst_quarter": ("Best beats worst, quarter", "↑", 3, "the same where top and bottom differ most"),
    "correlation_onset_f1": ("Correlation, onset F1", "↑", 3, "reward and onset F1 among a video's candidates"),
    "rank_correlation_onset_f1": ("Rank correlation, onset F1", "↑", 3, "the same by ranks"),
    "correlation_class_f1": ("Correlation, class F1", "↑", 3, "reward and class F1 among a video's candidates"),
    "rank_correlation_class_f1": ("Rank correlation, class F1", "↑", 3, "the same by ranks"),
}
FAMILIES = {  # what a name begins with, before that of its backbone: the same
    "fd": ("FD", "↓", 2, "Fréchet distance of the clips' features to those of the references"),
    "kid": ("KID", "↓", 4, "kernel distance of the same"),
    "kl_softmax": ("KL, softmax", "↓", 3, "of the class scores of each reference to those of its generated clip"),
    "kl_sigmoid": ("KL, sigmoid", "↓", 3, "the same for scores of which several can be high"),
    "is": ("IS", "↑", 2, "Inception Score: class scores that are sure, and differ between clips"),
    "retrieval_r1_64": ("R@1 of 64", "↑", 3, "a clip's own reference is the nearest of 64; chance .016"),
    "onset_f1_100ms": ("Onset F1, 100 ms", "↑", 3, "onsets within 100 ms of the reference's; high by chance in busy clips"),
    "onset_f1_annotated": ("Onset F1, annotated", "↑", 3, "onsets near a true event, mean over tolerances of 50 to 800 ms"),
    "onset_f1": ("Onset F1", "↑", 3, "onsets near one in the reference, mean over tolerances of 50 to 800 ms"),
    "onset_ap": ("Onset AP", "↑", 3, "average precision of onsets by strength, mean over the same tolerances"),
    "event_f1": ("Event F1", "↑", 3, "detected events with the class and onset (±80 ms) of one in the reference"),
    "av_align_1_frame": ("AV-Align, 1 frame", "↑", 3, "onsets of sound and motion that coincide within a frame, of all"),
    "av_align": ("AV-Align", "↑", 3, "the same, mean over windows of 50 to 800 ms"),
    "desync": ("DeSync", "↓", 3, "mean absolute delay between sound and pictures (spectral flux: real sound), in seconds"),
    "ib_score": ("IB-score", "↑", 3, "cosine of the sound's and the video's embeddings"),
    "clap_score": ("CLAP score", "↑", 3, "cosine of the sound's and the caption's embeddings"),
    "semantic": ("Semantic", "↑", 3, "cosine of whole clips"),
    "dynamic": ("Dynamic", "↑", 3, "cosine of sound and pictures, step by step"),
    "window": ("Window", "↑", 3, "cosine of short windows"),
}
BACKBONES = {
    "logmel": "log-mel statistics", "spectral_flux": "spectral flux", "motion_energy": "motion energy", "vggish": "VGGish",
    "panns": "PANNs", "passt": "PaSST", "synchformer": "Synchformer", "imagebind": "ImageBind", "sf_cavp": "SF-CAVP",
    "judge": "judge", "laion": "LAION", "ms": "Microsoft",
}
_INK = "#010203"  # stands for the page's text colour in figures, which follows the reader's light or dark theme
_KEYS = ("system", "baseline", "guidance", "split")


def write_report(
    workdir: str,
    results: dict[str, Any],
    spec: ClipSpec,
    class_names: tuple[str, ...],
    *,
    curves: dict[str, list[dict[str, float]]],
    examples: list[dict[str, Any]],
    facts: dict[str, Any],
    title: str = "Video to audio in multi-event scenes",
) -> epath.Path:
    """Writes `workdir`/report/index.html and returns its path. The page loads nothing from anywhere.

    `curves` maps a stage to its log, rows of {"step": n, metric: number, ...}. An example is {"id", "caption", "events"
    (n, 2) true events, "frames" uint8 (T, H, W, 3), "tracks": [{"name", "waveform" (S,), "mel" (T, M), "detected"
    (n, 2)}]}; event lists are those of `evaluation.events`. `facts` is shown as it is: plain values as a list, dicts as
    tables, and the entry `config` folded.
    """
    footnotes: list[str] = []
    page = _template("report.html.j2").render(
        title=title,
        headline=_group_table(results.get("rows", []), footnotes),
        differences=_group_table(results.get("differences", []), footnotes),
        chart=_event_chart(results.get("rows", [])),
        gains=gain_chart(results.get("rows", [])),
        scores=[
            ("SF-CAVP on held-out clips", _score_list(results.get("sf_cavp", {}), footnotes)),
            ("SF-CAVP as a reward", _score_list(results.get("reward", {}), footnotes)),
        ],
        footnotes=footnotes,
        curves={stage: _curve_figures(stage, log) for stage, log in curves.items()},
        examples=[_example(example, spec) for example in examples],
        legend=list(zip(class_names, class_colours(len(class_names)))),
        colours=class_colours(len(class_names)),
        duration_sec=spec.duration_sec,
        tolerance_ms=round(1000 * events.TOLERANCE_SEC),
        **_fact_lists(facts),
    )
    return _write_page(workdir, page)


def _fact_lists(facts: dict[str, Any]) -> dict[str, Any]:
    """Plain values, tables and the configuration, as the page shows them."""
    return {
        "facts": {name: value for name, value in facts.items() if not isinstance(value, dict)},
        "fact_tables": {name: value for name, value in facts.items() if isinstance(value, dict) and name != "config"},
        "config": json.dumps(facts["config"], indent=2, default=str) if "config" in facts else None,
    }


def _write_page(workdir: str, page: str) -> epath.Path:
    path = epath.Path(workdir) / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)
    return path


def write_figures(
    workdir: str,
    columns: dict[str, dict[str, Any]],
    spec: ClipSpec,
    *,
    intro: str,
    facts: dict[str, Any],
    differences: dict[str, dict[str, Any]] | None = None,
    baseline: str = "",
    examples: Sequence[dict[str, Any]] = (),
    reference_onsets: str = "true onsets",
    title: str = "Generated sound, measured",
) -> epath.Path:
    """Writes `workdir`/report/index.html for what is no run: figures down, and across them `columns` of one set of clips each.

    A column is a row of `results`; `differences` are columns of the same figures minus those of `baseline`. Examples are
    those of `write_report`, their `events` and `detected` lists of one class; without "frames" (None) they are heard only.
    """
    footnotes: list[str] = []
    page = _template("figures.html.j2").render(
        title=title, intro=intro, figures=_figure_table(columns, footnotes), baseline=baseline,
        differences=_figure_table(differences, footnotes) if differences else None, chart=None,
        reference_onsets=reference_onsets, footnotes=footnotes, examples=[_example(example, spec) for example in examples],
        legend=[("onset", class_colours(1)[0])], colours=class_colours(1), duration_sec=spec.duration_sec, **_fact_lists(facts),
    )
    return _write_page(workdir, page)


def format_figures(columns: dict[str, dict[str, Any]], differences: dict[str, dict[str, Any]] | None = None) -> str:
    """The tables of `write_figures` as plain text."""
    footnotes: list[str] = []
    blocks = []
    for part in filter(None, (columns, differences)):
        table = _figure_table(part, footnotes)
        body = [[row["label"] + row["direction"], *map(_plain, row["cells"])] for row in table["rows"]]
        blocks.append(_aligned([["Figure", *table["columns"]], *body], left=1))
    return "\n\n".join([*blocks, *_notes(footnotes)])


def format_table(results: dict[str, Any]) -> str:
    """The same tables as plain text, columns aligned, reasons for missing values below."""
    footnotes: list[str] = []
    blocks = []
    for name in ("rows", "differences"):
        if results.get(name):
            table = _group_table(results[name], footnotes)
            body = [[*row["keys"], *(_plain(cell) for cell in row["cells"])] for row in table["rows"]]
            labels = [column["label"] + column["direction"] for column in table["columns"]]
            common = ", ".join(f"{key}: {text}" for key, text in table["common"].items())
            lines = _aligned([[*table["keys"], *labels], *body], left=len(table["keys"]))
            blocks.append(f"{common}\n{lines}" if common else lines)
    for name in ("sf_cavp", "reward"):
        if results.get(name):
            scores = _score_list(results[name], footnotes)
            blocks.append(_aligned([[score["label"], _plain(score["cell"])] for score in scores], left=1))
    return "\n\n".join([*blocks, *_notes(footnotes)])


def _notes(footnotes: list[str]) -> list[str]:
    """The reasons as one block of lines, or no block."""
    return ["\n".join(f"[{number}] not computed: {reason}" for number, reason in enumerate(footnotes, 1))] if footnotes else []


def class_colours(classes: int) -> list[str]:
    """One colour per class, evenly spaced in hue, light and deep in turn, all bright enough for a dark ground."""
    rgb = [colorsys.hls_to_rgb(index / classes, 0.75 if index % 2 else 0.58, 0.9) for index in range(classes)]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in rgb]


def _template(name: str) -> jinja2.Template:
    loader = jinja2.PackageLoader("msg_jax.evaluation", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(name)


# Tables


def _group_table(rows: list[dict], footnotes: list[str]) -> dict[str, Any]:
    """One row per (system, baseline, guidance, split), one column per metric that any row names."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in _KEYS), []).append(row)
    named = list(dict.fromkeys(name for row in rows for name in row))
    names = [name for name in named if name not in (*_KEYS, "seed") and not name.endswith("_reason")]
    names.sort(key=lambda name: list(METRICS).index(name) if name in METRICS else len(METRICS))
    # A key that is the same everywhere is no column but a line above the table.
    shown = [index for index, key in enumerate(_KEYS) if key == "system" or len({group[index] for group in groups}) > 1]
    common = {key: value for index, key in enumerate(_KEYS) for value in {group[index] for group in groups}
              if index not in shown and value is not None}
    table = {"common": {key: _key_text(key, value) for key, value in common.items()}, "rows": []}
    table["keys"] = [_KEYS[index].capitalize() for index in shown]
    table["columns"] = [describe(name) for name in names]
    for group, members in groups.items():
        keys = [_key_text(_KEYS[index], group[index]) for index in shown]
        again = bool(table["rows"]) and table["rows"][-1]["keys"][0] == keys[0]
        note = "" if again else SYSTEMS.get(group[0], ("", ""))[1]
        cells = [_cell(name, members, footnotes) for name in names]
        table["rows"].append({"keys": keys, "again": again, "note": note, "cells": cells})
    return table


def _figure_table(columns: dict[str, dict[str, Any]], footnotes: list[str]) -> dict[str, Any]:
    """One row per figure that any column names, in the order of the first that does; `columns` are single rows."""
    named = list(dict.fromkeys(name for row in columns.values() for name in row))
    names = [name for name in named if name not in (*_KEYS, "event_count", "seed") and not name.endswith("_reason")]
    not_there = {f"{name}_reason": "it was not asked for" for name in names}
    rows = [
        {**describe(name), "cells": [_cell(name, [not_there | row], footnotes) for row in columns.values()]} for name in names
    ]
    return {"columns": list(columns), "rows": rows}


def _score_list(scores: dict[str, Any], footnotes: list[str]) -> list[dict[str, Any]]:
    names = [name for name in scores if not name.endswith("_reason")]
    return [{**describe(name), "cell": _cell(name, [scores], footnotes)} for name in names]


def describe(name: str) -> dict[str, Any]:
    label, direction, digits, meaning = METRICS.get(name) or _family(name)
    return {"name": name, "label": label, "direction": direction, "digits": digits, "meaning": meaning}


def _family(name: str) -> tuple[str, str, int, str]:
    """The description of a figure whose name ends in that of its backbone."""
    for backbone, shown in BACKBONES.items():
        family = name.removesuffix(f"_{backbone}")
        if family != name and family in FAMILIES:
            label, *rest = FAMILIES[family]
            return (f"{label} ({shown})", *rest)
    return name.replace("_", " "), "", 3, ""


def _key_text(key: str, value: Any) -> str:
    if value is None:
        return "-"
    return SYSTEMS[value][0] if key in ("system", "baseline") and value in SYSTEMS else str(value)


def _cell(name: str, members: list[dict], footnotes: list[str]) -> dict[str, Any]:
    """Text of one table cell from the rows of all seeds: main figure, spread, note number of what is missing."""
    digits = describe(name)["digits"]
    values = [row.get(name) for row in members]
    numbers = [_number(value) for value in values]
    present = [number for number in numbers if number is not None]
    reasons = [row.get(f"{name}_reason") or "no reason was recorded" for row, n in zip(members, numbers) if n is None]
    notes = [_footnote(footnotes, reason) for reason in dict.fromkeys(reasons)]
    if not present:
        return {"main": None, "spread": "", "notes": notes}
    if len(present) > 1:
        spread = f"± {statistics.stdev(present):.{digits}f}, n = {len(present)}"
    elif isinstance(values[numbers.index(present[0])], dict):
        spread = _spread(values[numbers.index(present[0])], digits)
    else:
        spread = ""
    return {"main": f"{statistics.mean(present):.{digits}f}", "spread": spread, "notes": notes}


def _spread(value: dict[str, Any], digits: int) -> str:
    if "std" in value:
        return f"± {value['std']:.{digits}f}"
    if "low" in value:
        return f"{value['low']:.{digits}f} to {value['high']:.{digits}f}"
    if "videos" in value:
        return f"{value['videos']} videos, {value['ignored']} ignored"
    return ""


def _number(value: Any) -> float | None:
    number = value.get("value") if isinstance(value, dict) else value
    return None if number is None or not math.isfinite(number) else float(number)


def _footnote(footnotes: list[str], reason: str) -> int:
    if reason not in footnotes:
        footnotes.append(reason)
    return footnotes.index(reason) + 1


def _plain(cell: dict[str, Any]) -> str:
    notes = "".join(f" [{number}]" for number in cell["notes"])
    spread = f" ({cell['spread']})" if cell["spread"] else ""
    return (cell["main"] or "not computed") + spread + notes


def _aligned(rows: list[list[str]], left: int) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    align = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    lines = [[place(text, width) for place, text, width in zip(align, row, widths)] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


# Figures


def _event_chart(rows: list[dict]) -> str | None:
    """Event F1 of every row with its interval: systems down, one colour per guidance scale."""
    points = [(row, _number(row.get("event_f1"))) for row in rows]
    points = [(row, number) for row, number in points if number is not None]
    if not points:
        return None
    systems = list(dict.fromkeys(row["system"] for row, _ in points))
    scales = list(dict.fromkeys(row.get("guidance") for row, _ in points))
    middle = (len([scale for scale in scales if scale is not None]) - 1) / 2
    figure, axes = _figure(8, 0.8 + 0.4 * len(systems))
    for index, scale in enumerate(sorted(scales, key=lambda scale: (scale is None, scale))):
        mine = [(row, number) for row, number in points if row.get("guidance") == scale]
        offset = 0 if scale is None else 0.2 * (index - middle)
        heights = [systems.index(row["system"]) + offset for row, _ in mine]
        bounds = [row["event_f1"] if isinstance(row["event_f1"], dict) else {} for row, _ in mine]
        reach = [(max(0, n - b.get("low", n)), max(0, b.get("high", n) - n)) for (_, n), b in zip(mine, bounds)]
        label = "no guidance" if scale is None else f"guidance {scale:g}"
        style = dict(fmt="o", markersize=4, elinewidth=1.4, color=_INK if scale is None else f"C{index}", label=label)
        axes.errorbar([number for _, number in mine], heights, xerr=np.array(reach).T, **style)
    axes.set_yticks(range(len(systems)), [_key_text("system", name) for name in systems])
    axes.set(xlim=(0, 1), ylim=(len(systems) - 0.5, -0.5), xlabel="Event F1")
    axes.grid(axis="x", color=_INK, alpha=0.12)
    if len(scales) > 1:
        figure.legend(frameon=False, labelcolor=_INK, loc="outside upper left", ncols=len(scales), fontsize=9)
    return _svg(figure, salt="event chart")


def gain_chart(rows: list[dict]) -> str | None:
    """SVG of event F1 minus the base's of the same seed over guidance scales: a line for each system that has them.

    Points are means over seeds, bars their standard errors where there are several. None where nothing can be compared.
    """
    found = {(row["system"], row.get("seed"), row.get("guidance")): _number(row.get("event_f1")) for row in rows}
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
        at = np.array(scales) + 0.012 * (index - (len(lines) - 1) / 2)  # bars beside each other
        marks = "o-" if index < 10 else "s--"  # there are ten colours
        axes.errorbar(at, gains.mean(axis=0), yerr=error, fmt=marks, markersize=4, linewidth=1.4, elinewidth=1,
                      color=f"C{index}", label=_key_text("system", name))
    axes.set_xticks(scales, [f"{scale:g}" for scale in scales])
    axes.set(xlabel="Guidance", ylabel="Event F1, minus the base's")
    axes.yaxis.label.set_color(_INK)
    axes.grid(axis="y", color=_INK, alpha=0.12)
    figure.legend(frameon=False, labelcolor=_INK, loc="outside right upper", fontsize=9)
    return _svg(figure, salt="gain chart")


def _curve_figures(stage: str, log: list[dict[str, float]]) -> list[tuple[str, str]]:
    """(metric, SVG) for every number that a log holds over its steps."""
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
    """The figure as an inline SVG element whose text and axes take the page's colour and font.

    Shapes inside refer to each other by hashed names; a `salt` of its own keeps them apart from another figure's.
    """
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


# Examples


def _example(example: dict[str, Any], spec: ClipSpec) -> dict[str, Any]:
    levels = np.concatenate([np.ravel(track["mel"]) for track in example["tracks"]])
    low, high = np.quantile(levels, [0.02, 0.998])
    tracks = []
    for track in example["tracks"]:
        hits = events.assign(example["events"], track["detected"])
        if example["frames"] is None:
            player = {"audio": _data_uri("audio/mpeg", _mp3(track["waveform"], spec.audio_hz))}
        else:
            video = media_writer.encode_video(example["frames"], spec.video_hz, track["waveform"], spec.audio_hz)
            player = {"video": _data_uri("video/mp4", video)}
        tracks.append({
            **player,
            "label": _key_text("system", track["name"]),
            "mel": _data_uri("image/png", _mel_png(track["mel"], low, high)),
            "true": _marks(example["events"], hits[:, 0]),
            "detected": _marks(track["detected"], hits[:, 1]),
            "hits": len(hits),
        })
    shown = {"id": example["id"], "caption": example["caption"], "tracks": tracks}
    if example["frames"] is None:
        return shown
    height, width = example["frames"].shape[1:3]
    return shown | {"aspect": f"{width} / {height}", "poster": _data_uri("image/png", _poster_png(example["frames"][0]))}


def _mp3(waveform: np.ndarray, hz: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, hz, format="MP3")
    return file.getvalue()


def _marks(listed: np.ndarray, hits: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"label": int(label), "sec": float(onset), "hit": index in hits} for index, (label, onset) in enumerate(listed)
    ]


def _mel_png(mel: np.ndarray, low: float, high: float) -> bytes:
    """Log-mel (T, M) as a picture, low bands at the bottom; all tracks of an example share one scale."""
    image = io.BytesIO()
    mpl_image.imsave(image, np.asarray(mel, np.float32).T[::-1], vmin=low, vmax=high, cmap="bone", format="png")
    return image.getvalue()


def _poster_png(frame: np.ndarray) -> bytes:
    """The first frame, small ones enlarged with hard edges as in the video: phones show nothing else before playing."""
    factor = max(1, 192 // min(frame.shape[:2]))
    image = io.BytesIO()
    mpl_image.imsave(image, frame.repeat(factor, 0).repeat(factor, 1), format="png")
    return image.getvalue()


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
