import base64
from html.parser import HTMLParser
import json
import math
import re

import numpy as np
import pytest

from msg_jax.clip import TINY
from msg_jax.data import media_writer
from msg_jax.evaluation import charts, report

CLASSES = ("wood", "metal", "glass <&>")
SYSTEMS = {"avp_rpo": {"label": "AVP-RPO", "note": "tuned <well>"}, "half": {"label": "Half-way", "note": ""}}
VOID = {"meta", "link", "img", "br", "hr", "input"}


class _Page(HTMLParser):
    """Checks that every element is closed in order; collects text, attributes and table rows."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.text, self.attributes, self.ids, self.rows = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else at {self.getpos()}"

    def handle_data(self, data):
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += " " + data.strip()


def _row(system, guidance=None, seed=0, **metrics):
    return {"system": system, "guidance": guidance, "split": "test", "seed": seed, **metrics}


def test_gains_are_drawn_where_a_system_has_the_base_s_seeds_and_scales():
    rows = [
        _row(system, scale, seed, event_f1=0.8 + gain * scale + 0.01 * seed)
        for system, gain in (("base", 0.0), ("avp_rpo", 0.02), ("half", -0.01)) for scale in (1.0, 2.0) for seed in (0, 1)
        if (system, scale, seed) != ("half", 2.0, 1)
    ]
    chart = charts.gain_chart([_row("real", event_f1=0.99), *rows], SYSTEMS)
    assert "AVP-RPO" in chart and "Half-way" not in chart and "half" not in chart and "Real sound" not in chart
    assert charts.gain_chart([row for row in rows if row["guidance"] == 1.0], SYSTEMS) is None


@pytest.fixture
def results():
    interval = {"value": 0.75, "low": 0.731, "high": 0.769}
    return {
        "rows": [
            _row("real", event_f1={"value": 0.991, "low": 0.985, "high": 0.996}, fd_judge=0.0),
            _row("base", 1.0, event_f1=interval, fd_judge=None, fd_judge_reason="fewer than two clips"),
            *(_row("avp_rpo", 1.0, seed, event_f1=value, fd_judge=10.0) for seed, value in enumerate((0.77, 0.78, 0.79))),
            _row("my_own_system", 2.5, event_f1=math.nan, my_metric=1.5),
        ],
        "differences": [_row("avp_rpo", 1.0, baseline="base", event_f1={"value": 0.03, "low": 0.01, "high": 0.05})],
        "sf_cavp": {"offset_accuracy_9": 0.98, "dynamic_r1_64": None, "dynamic_r1_64_reason": "40 clips are fewer than 64"},
        "reward": {"within_video_correlation": {"value": 0.31, "videos": 180, "ignored": 12}},
    }


@pytest.fixture
def example():
    mel = np.random.default_rng(0).normal(size=(160, 40))
    truth = np.array([[0, 0.8], [1, 1.6]])
    detected = np.array([[0, 0.82], [2, 2.4]])
    track = {"name": "base", "waveform": np.zeros(TINY.audio_samples, np.float32), "mel": mel, "detected": detected}
    frames = np.zeros((80, 24, 24, 3), np.uint8)
    return {"id": "clip-1", "caption": "wood <and> metal", "events": truth, "frames": frames, "tracks": [track]}


@pytest.fixture
def page(tmp_path, monkeypatch, results, example):
    monkeypatch.setattr(media_writer, "encode_video", lambda frames, hz, waveform, audio_hz: b"mp4 of %d frames" % len(frames))
    curves = {"base": [{"step": step, "loss": 1 / (1 + step), "note": "x", "rare": 0.5 if step == 3 else None}
                       for step in range(5)]}
    facts = {"git_revision": "abc1234", "seconds_per_stage": {"base": 12.34}, "config": {"preset": "tiny"}}
    path = report.write_report(
        tmp_path, results, TINY, CLASSES, systems=SYSTEMS, curves=curves, examples=[example], facts=facts
    )
    assert path == tmp_path / "report" / "index.html"
    return path.read_text()


def test_page_is_well_formed_and_its_ids_are_unique(page):
    ids = _Page(page).ids
    assert len(ids) == len(set(ids))
    assert {"results", "reward", "examples", "curves", "run"} <= set(ids)


def test_page_loads_nothing(page):
    for tag, name, value in _Page(page).attributes:
        if name in ("src", "href", "xlink:href", "poster", "srcset", "action"):
            assert value.startswith(("data:", "#")), f"<{tag} {name}={value[:60]}>"
    assert not re.search(r"@import|url\((?!['\"]?(#|data:))|fetch\(|XMLHttpRequest|WebSocket", page)


def test_every_row_and_reason_is_on_the_page(page):
    parsed = _Page(page)
    rows = [" ".join(" ".join(row).split()) for row in parsed.rows]
    for start, *parts in [
        ("Real sound", "0.991 0.985 to 0.996", "0.00"),
        ("Base", "1.0", "0.750 0.731 to 0.769", "not computed 1"),
        ("AVP-RPO", "1.0", "0.780 ± 0.010, n = 3", "10.00 ± 0.00, n = 3"),
        ("my_own_system", "2.5", "not computed", "1.500"),
        ("AVP-RPO", "0.030 0.010 to 0.050"),
    ]:
        assert any(row.startswith(start) and all(part in row for part in parts) for row in rows), (start, rows)
    text = " ".join(" ".join(parsed.text).split())
    for reason in ("fewer than two clips", "40 clips are fewer than 64", "no reason was recorded"):
        assert f"not computed: {reason}" in text
    for other in (
        "tuned <well>", "180 videos, 12 ignored", "abc1234", "12.3", '"preset": "tiny"', "wood <and> metal", "glass <&>",
    ):
        assert other in text


def test_marks_show_hits_misses_and_wrong_events(page):
    text = " ".join(_Page(page).text)
    assert "1 of 2 events, 1 wrong" in text
    for true in ("wood at 0.80 s", "metal at 1.60 s, missed"):
        assert true in text
    for detected in ("wood heard at 0.82 s", "glass <&> heard at 2.40 s, wrong"):
        assert detected in text
    places = [value for _, name, value in _Page(page).attributes if name == "cx" and "%" in value]
    assert places == ["25.00%", "50.00%"]  # of 3.2 s


def test_curves_show_numbers_only(page):
    captions = re.findall(r"<figcaption>([^<]*)</figcaption>", page)
    assert captions[-2:] == ["loss", "rare"]


def test_video_is_embedded(page):
    sources = [value for tag, name, value in _Page(page).attributes if tag == "video" and name == "src"]
    assert sources == ["data:video/mp4;base64,bXA0IG9mIDgwIGZyYW1lcw=="]


def test_real_video_bytes_are_an_mp4(tmp_path, results, example):
    path = report.write_report(tmp_path, results, TINY, CLASSES, systems=SYSTEMS, curves={}, examples=[example], facts={})
    (source,) = re.findall(r'src="data:video/mp4;base64,([^"]+)"', path.read_text())
    assert base64.b64decode(source)[4:8] == b"ftyp"


def test_an_empty_run_still_makes_a_page(tmp_path):
    path = report.write_report(tmp_path, {"rows": []}, TINY, (), systems={}, curves={}, examples=[], facts={})
    text = " ".join(_Page(path.read_text()).text)
    assert "No system was evaluated" in text and "Not evaluated in this run" in text


def test_terminal_table(results):
    lines = report.format_table(results, SYSTEMS).splitlines()
    assert lines[0] == "split: test"
    assert lines[1].split() == ["System", "Guidance", "Event", "F1↑", "FD", "(judge)↓", "my", "metric"]
    assert lines[2].startswith("Real sound") and "0.991 (0.985 to 0.996)" in lines[2]
    assert "0.780 (± 0.010, n = 3)" in lines[4]
    assert re.search(r"not computed \[2\]", lines[3]) and "[2] not computed: fewer than two clips" in lines
    assert "Offset choice" in report.format_table(json.loads(json.dumps(results)), SYSTEMS)


def test_colours_are_distinct():
    assert len(set(charts.class_colours(24))) == 24


def test_the_page_of_metrics_is_well_formed_and_plays_sound_alone(tmp_path, example):
    columns = {
        "Generated": {"system": "generated", "fd_vggish": {"value": 1.5, "low": 1.25, "high": 1.75}, "is_panns": None,
                      "is_panns_reason": "got 9 <clips>", "kid_panns": {"value": 0.01, "std": 0.002}},
        "Real sound": {"system": "real", "fd_vggish": 0.0},
    }
    example = example | {"frames": None, "events": np.array([[0, 0.8]])}
    example["tracks"][0]["detected"] = np.array([[0, 0.82], [0, 2.4]])
    options = dict(intro="2 clips", facts={"clips": 2}, differences={"b - a": {"fd_vggish": 0.1}}, baseline="a")
    text = report.write_metrics(tmp_path, columns, TINY, examples=[example], **options).read_text()
    page = _Page(text)
    assert len(page.ids) == len(set(page.ids)) and {"results", "examples", "run"} <= set(page.ids)
    assert "reward" not in page.ids
    rows = [" ".join(" ".join(row).split()) for row in page.rows]
    assert any(row.startswith("FD (VGGish)") and "1.50 1.25 to 1.75" in row and row.endswith("0.00") for row in rows), rows
    assert any("0.0100" in row and "± 0.0020" in row for row in rows)
    shown = " ".join(" ".join(page.text).split())
    assert "not computed: got 9 <clips>" in shown and "not computed: it was not requested" in shown
    assert "1 of 1 events, 1 wrong" in shown
    sources = [value for tag, name, value in page.attributes if tag == "audio" and name == "src"]
    assert len(sources) == 1 and sources[0].startswith("data:audio/mpeg;base64,")
    for tag, name, value in page.attributes:
        if name in ("src", "href", "poster"):
            assert value.startswith(("data:", "#")), f"<{tag} {name}={value[:60]}>"
    table = report.format_metrics(columns)
    assert "1.50 (1.25 to 1.75)" in table and "[1] not computed: got 9 <clips>" in table
