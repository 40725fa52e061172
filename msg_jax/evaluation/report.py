"""Results as one self-contained web page, and as text tables for the terminal.

`results` is the content of `results.json`:

    {"rows": [{"system", "guidance", "passes", "split", "seed", <metric>: value, ...}, ...],
     "groups": [the same, with event F1 by group of clips],   (optional)
     "differences": [{"system", "baseline", "guidance", "split", "seed", <metric>: value, ...}, ...],   (optional)
     "rounds": [{"system", "split", "seed", "round", "share", <metric>: value, ...}, ...],   (optional)
     "sf_cavp": {<metric>: value, ...}, "reward": {<metric>: value, ...}}

A value is a number, `{"value", "low", "high"}` with the bounds of an interval, or None with the reason in `<metric>_reason`.
Rows that differ only in `seed` are shown as one: mean, standard deviation and number of seeds.
"""

import base64
from collections.abc import Sequence
import io
import json
import os
import statistics
from typing import Any

from etils import epath
import jinja2
from matplotlib import image as mpl_image
import numpy as np
import soundfile

from msg_jax.clip import ClipSpec
from msg_jax.data import media_writer
from msg_jax.evaluation import charts, events
from msg_jax.evaluation.labels import METRICS, Systems, describe, number, system_label, system_note
from msg_jax.tables import aligned

HEADLINE = ("event_f1", "event_f1_second_judge", "event_f1_40ms", "fd_judge", "cost_tflop")
"""The columns of the first table; all others are folded."""

_SCORED = {"sf_cavp": "SF-CAVP on held-out clips", "reward": "SF-CAVP as a reward"}
_KEYS = ("system", "baseline", "guidance", "passes", "split", "round", "share")


def write_report(
    workdir: str | os.PathLike,
    results: dict[str, Any],
    spec: ClipSpec,
    class_names: tuple[str, ...],
    *,
    systems: Systems,
    curves: dict[str, list[dict[str, float]]],
    examples: list[dict[str, Any]],
    facts: dict[str, Any],
    title: str = "Video to audio in multi-event scenes",
    headline: Sequence[str] = HEADLINE,
    charted: str = "event_f1",
    charted_split: str = "",
    scored: Sequence[str] = ("sf_cavp", "reward"),
    template: str = "report.html.j2",
) -> epath.Path:
    """Write `workdir`/report/index.html and return its path. The page is self-contained; `example.png` lies beside it.

    `systems` are the tuned systems among the rows. `curves` maps a stage to its log, rows of {"step": n, metric: number, ...}.
    An example is {"id", "caption", "events" (n, 2) true events, "frames" uint8 (T, H, W, 3), "tracks": [{"name", "waveform"
    (S,), "mel" (T, M), "detected" (n, 2)}]}; event lists are those of `evaluation.events`. `facts` are shown as they are: plain
    values as a list, dicts as tables, and the entry `config` folded.

    The first table has the metrics `headline`, and the charts show the metric `charted`, of the rows of `charted_split` (by
    default of all). `scored` are the entries of `results` with metrics of a reward. A track may have "frames" of its own, and
    "events" to show in the place of the true ones.
    """
    footnotes: list[str] = []
    rows = results.get("rows", [])
    shown = [row for row in rows if row["split"] == charted_split or not charted_split]
    page = _template(template).render(
        title=title,
        headline=_group_table(shown, systems, footnotes, headline),
        metrics=_group_table(rows, systems, footnotes),
        groups=_group_table(results.get("groups", []), systems, footnotes),
        differences=_group_table(results.get("differences", []), systems, footnotes),
        rounds=_group_table(results.get("rounds", []), systems, footnotes),
        charted=describe(charted)["label"],
        chart=charts.event_chart(shown, systems, charted),
        gains=charts.gain_chart(shown, systems, charted),
        scores=[
            (_SCORED[name], _score_list(results.get(name, {}), footnotes)) for name in scored
        ],
        footnotes=footnotes,
        curves={stage: charts.curves(stage, log) for stage, log in curves.items()},
        examples=[_example(example, spec, systems) for example in examples],
        legend=list(zip(class_names, charts.class_colours(len(class_names)))),
        colours=charts.class_colours(len(class_names)),
        duration_sec=spec.duration_sec,
        tolerance_ms=round(1000 * events.TOLERANCE_SEC),
        **_fact_lists(facts),
    )
    path = _write_page(workdir, page)
    if examples and class_names:
        (path.parent / "example.png").write_bytes(charts.example(examples[0], spec, class_names, systems))
    return path


def _fact_lists(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts as the page shows them: plain values, tables, and the configuration."""
    return {
        "facts": {name: value for name, value in facts.items() if not isinstance(value, dict)},
        "fact_tables": {name: value for name, value in facts.items() if isinstance(value, dict) and name != "config"},
        "config": json.dumps(facts["config"], indent=2, default=str) if "config" in facts else None,
    }


def _write_page(workdir: str | os.PathLike, page: str) -> epath.Path:
    path = epath.Path(workdir) / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page.encode(errors="backslashreplace"))  # names may not be UTF-8
    return path


def write_metrics(
    workdir: str | os.PathLike,
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
    """Write `workdir`/report/index.html for an evaluation outside a run: one line per metric, one column per set of clips.

    A column is a row of `results`; `differences` are columns of the same metrics minus those of `baseline`. Examples are those
    of `write_report`, with event lists of one class; "frames" may be None.
    """
    footnotes: list[str] = []
    page = _template("metrics.html.j2").render(
        title=title, intro=intro, metrics=_metric_table(columns, footnotes), baseline=baseline,
        differences=_metric_table(differences, footnotes) if differences else None, chart=None,
        reference_onsets=reference_onsets, footnotes=footnotes, examples=[_example(example, spec, {}) for example in examples],
        legend=[("onset", charts.class_colours(1)[0])], colours=charts.class_colours(1), duration_sec=spec.duration_sec,
        **_fact_lists(facts),
    )
    return _write_page(workdir, page)


def format_metrics(columns: dict[str, dict[str, Any]], differences: dict[str, dict[str, Any]] | None = None) -> str:
    """The tables of `write_metrics` as text."""
    footnotes: list[str] = []
    blocks = []
    for part in filter(None, (columns, differences)):
        table = _metric_table(part, footnotes)
        body = [[row["label"] + row["direction"], *map(_plain, row["cells"])] for row in table["rows"]]
        blocks.append(aligned([["Metric", *table["columns"]], *body]))
    return "\n\n".join([*blocks, *_notes(footnotes)])


def format_table(results: dict[str, Any], systems: Systems) -> str:
    """The tables of `write_report` as text, with the reasons for missing values below."""
    footnotes: list[str] = []
    blocks = []
    for name in ("rows", "groups", "differences", "rounds"):
        if results.get(name):
            table = _group_table(results[name], systems, footnotes)
            body = [[*row["keys"], *(_plain(cell) for cell in row["cells"])] for row in table["rows"]]
            labels = [column["label"] + column["direction"] for column in table["columns"]]
            common = ", ".join(f"{key}: {text}" for key, text in table["common"].items())
            lines = aligned([[*table["keys"], *labels], *body], left=len(table["keys"]))
            blocks.append(f"{common}\n{lines}" if common else lines)
    for name in ("sf_cavp", "reward"):
        if results.get(name):
            scores = _score_list(results[name], footnotes)
            blocks.append(aligned([[score["label"], _plain(score["cell"])] for score in scores]))
    return "\n\n".join([*blocks, *_notes(footnotes)])


def _notes(footnotes: list[str]) -> list[str]:
    """The reasons for missing values, as one block of lines or none."""
    return ["\n".join(f"[{number}] not computed: {reason}" for number, reason in enumerate(footnotes, 1))] if footnotes else []


def _template(name: str) -> jinja2.Template:
    loader = jinja2.PackageLoader("msg_jax.evaluation", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(name)


# Tables


def _group_table(
    rows: list[dict], systems: Systems, footnotes: list[str], columns: Sequence[str] | None = None
) -> dict[str, Any]:
    """One row per combination of _KEYS, one column per metric of `columns` that any row names.

    Without `columns`, it has all metrics.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in _KEYS), []).append(row)
    named = list(dict.fromkeys(name for row in rows for name in row))
    names = [name for name in named if name not in (*_KEYS, "seed") and not name.endswith("_reason")]
    names.sort(key=lambda name: list(METRICS).index(name) if name in METRICS else len(METRICS))
    if columns is not None:
        names = [name for name in columns if name in names]
    # A key with one value everywhere goes into a line above the table, not into a column.
    shown = [index for index, key in enumerate(_KEYS) if key == "system" or len({group[index] for group in groups}) > 1]
    common = {key: value for index, key in enumerate(_KEYS) for value in {group[index] for group in groups}
              if index not in shown and value is not None}
    table = {"common": {key: _key_text(key, value, systems) for key, value in common.items()}, "rows": []}
    table["keys"] = [_KEYS[index].capitalize() for index in shown]
    table["columns"] = [describe(name) for name in names]
    for group, members in groups.items():
        keys = [_key_text(_KEYS[index], group[index], systems) for index in shown]
        again = bool(table["rows"]) and table["rows"][-1]["keys"][0] == keys[0]
        note = "" if again else system_note(group[0], systems)
        cells = [_cell(name, members, footnotes) for name in names]
        table["rows"].append({"keys": keys, "again": again, "note": note, "cells": cells})
    return table


def _metric_table(columns: dict[str, dict[str, Any]], footnotes: list[str]) -> dict[str, Any]:
    """One row per metric that any column has, in order of first appearance; a column is a single row of results."""
    named = list(dict.fromkeys(name for row in columns.values() for name in row))
    names = [name for name in named if name not in (*_KEYS, "event_count", "seed") and not name.endswith("_reason")]
    missing = {f"{name}_reason": "it was not requested" for name in names}
    rows = [
        {**describe(name), "cells": [_cell(name, [missing | row], footnotes) for row in columns.values()]} for name in names
    ]
    return {"columns": list(columns), "rows": rows}


def _score_list(scores: dict[str, Any], footnotes: list[str]) -> list[dict[str, Any]]:
    names = [name for name in scores if not name.endswith("_reason")]
    return [{**describe(name), "cell": _cell(name, [scores], footnotes)} for name in names]


def _key_text(key: str, value: Any, systems: Systems) -> str:
    if value is None:
        return "-"
    return system_label(value, systems) if key in ("system", "baseline") else str(value)


def _cell(name: str, members: list[dict], footnotes: list[str]) -> dict[str, Any]:
    """Text of one table cell from the rows of all seeds: mean, spread, and footnotes for missing values."""
    digits = describe(name)["digits"]
    values = [row.get(name) for row in members]
    numbers = [number(value) for value in values]
    present = [each for each in numbers if each is not None]
    reasons = [row.get(f"{name}_reason") or "no reason was recorded" for row, n in zip(members, numbers) if n is None]
    notes = [_footnote(footnotes, reason) for reason in dict.fromkeys(reasons)]
    if not present:
        return {"main": None, "spread": "", "notes": notes}
    if len(present) > 1:
        spread = f"± {statistics.stdev(present):.{digits}f}, n = {len(present)}"
    else:
        value = values[numbers.index(present[0])]
        spread = _spread(value, digits) if isinstance(value, dict) else ""
    return {"main": f"{statistics.mean(present):.{digits}f}", "spread": spread, "notes": notes}


def _spread(value: dict[str, Any], digits: int) -> str:
    if "std" in value:
        return f"± {value['std']:.{digits}f}"
    if "low" in value:
        return f"{value['low']:.{digits}f} to {value['high']:.{digits}f}"
    if "videos" in value:
        return f"{value['videos']} videos, {value['ignored']} ignored"
    return ""


def _footnote(footnotes: list[str], reason: str) -> int:
    if reason not in footnotes:
        footnotes.append(reason)
    return footnotes.index(reason) + 1


def _plain(cell: dict[str, Any]) -> str:
    notes = "".join(f" [{number}]" for number in cell["notes"])
    spread = f" ({cell['spread']})" if cell["spread"] else ""
    return (cell["main"] or "not computed") + spread + notes


# Examples


def _example(example: dict[str, Any], spec: ClipSpec, systems: Systems) -> dict[str, Any]:
    levels = np.concatenate([np.ravel(track["mel"]) for track in example["tracks"]])
    low, high = np.quantile(levels, [0.02, 0.998])
    tracks = []
    for track in example["tracks"]:
        true, frames = track.get("events", example["events"]), track.get("frames", example["frames"])
        hits = events.assign(true, track["detected"])
        if frames is None:
            player = {"audio": _data_uri("audio/mpeg", _mp3(track["waveform"], spec.audio_hz))}
        else:
            video = media_writer.encode_video(frames, spec.video_hz, track["waveform"], spec.audio_hz)
            player = {"video": _data_uri("video/mp4", video)}
        tracks.append({
            **player,
            "label": system_label(track["name"], systems) + track.get("suffix", ""),
            "mel": _data_uri("image/png", _mel_png(track["mel"], low, high)),
            "true": _marks(true, hits[:, 0]),
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
    """A log-mel (T, M) as an image with low bands at the bottom; all tracks of an example share one scale."""
    image = io.BytesIO()
    mpl_image.imsave(image, np.asarray(mel, np.float32).T[::-1], vmin=low, vmax=high, cmap="bone", format="png")
    return image.getvalue()


def _poster_png(frame: np.ndarray) -> bytes:
    """The first frame; small ones are enlarged with hard edges. Phones show it before playback."""
    factor = max(1, 192 // min(frame.shape[:2]))
    image = io.BytesIO()
    mpl_image.imsave(image, frame.repeat(factor, 0).repeat(factor, 1), format="png")
    return image.getvalue()


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
