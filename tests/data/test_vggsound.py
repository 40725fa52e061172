"""The VGGSound builder on a handful of files, most of them unusable as in the real data set."""

import json
import pathlib

import av
import numpy as np
import pytest

from msg_jax import clip as clip_module
from msg_jax.data import media_writer
from msg_jax.data.builders import vggsound
from msg_jax.data.tfds_source import TfdsSource
from msg_jax.errors import UserError

CLIP = clip_module.ClipSpec(duration_sec=0.8, video_px=16, clip_video_px=8)


def write(path, seconds, step=5, sound=True):
    """Writes a video that brightens by `step` levels per frame at 25 Hz, with a tone or silence."""
    levels = 10 + np.arange(round(25 * seconds), dtype=np.uint8) * step
    frames = np.broadcast_to(levels[:, None, None, None], (len(levels), 16, 16, 3))
    tone = 0.5 * np.sin(2 * np.pi * 500 * np.arange(round(16_000 * seconds)) / 16_000)
    path.write_bytes(media_writer.encode_video(frames, 25.0, tone * sound, 16_000))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("vggsound")
    videos = root / "videos"
    videos.mkdir()
    write(videos / "aaaaaaaaaaa_000030.mp4", 1.0)
    write(videos / "-bbbbbbbbbb_000000.mp4", 1.0)
    write(videos / "whole_video.mp4", 2.0, step=2)  # a whole video: the clip begins at second 1
    write(videos / "still_video_000005.mp4", 1.0, step=0)
    write(videos / "silentvideo_000005.mp4", 1.0, sound=False)
    write(videos / "short_video_000001.mp4", 0.5)
    (videos / "cut___video_000002.mp4").write_bytes((videos / "aaaaaaaaaaa_000030.mp4").read_bytes()[:900])
    whole, mute = str(videos / "aaaaaaaaaaa_000030.mp4"), str(videos / "no_audio___00_000003.mp4")
    with av.open(whole) as source, av.open(mute, "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0], opaque=True)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    rows = [
        ("aaaaaaaaaaa", 30, "playing, drums", "train"), ("-bbbbbbbbbb", 0, "dog barking", "test"),
        ("whole_video", 1, "hail", "train"), ("still_video", 5, "wind", "train"), ("silentvideo", 5, "wind", "train"),
        ("short_video", 1, "wind", "train"), ("cut___video", 2, "wind", "train"), ("no_audio___00", 3, "wind", "train"),
        ("gone_______", 4, "wind", "test"),
    ]
    table = root / "vggsound.csv"
    table.write_text("".join(f'{name},{start},"{label}",{split}\n' for name, start, label, split in rows))
    return root, vggsound.prepare_vggsound(root / "data", videos, table, CLIP)


def test_usable_clips_become_records_of_the_official_splits(built):
    _, folder = built
    train, test = TfdsSource(folder, CLIP, "train"), TfdsSource(folder, CLIP, "test")
    found = {train[i]["id"]: train[i] for i in range(len(train))}
    assert set(found) == {"aaaaaaaaaaa_000030", "whole_video_000001"}
    assert found["aaaaaaaaaaa_000030"]["caption"] == "playing, drums" and not found["aaaaaaaaaaa_000030"]["has_events"]
    assert [test[i]["id"] for i in range(len(test))] == ["-bbbbbbbbbb_000000"]
    # one second into a video that brightens by 2 levels per frame from 10: 25 frames later, 60
    assert abs(float(found["whole_video_000001"]["video"][0].mean()) - 60) < 3


def test_every_skipped_clip_has_its_reason(built):
    _, folder = built
    rows = [json.loads(line) for line in pathlib.Path(folder, "skipped.jsonl").read_text().splitlines()]
    reasons = {row["id"].split("_0000")[0]: row["reason"] for row in rows}
    words = {
        "gone_______": "does not exist", "still_video": "still picture", "silentvideo": "silence",
        "short_video": "before one window of 0.8 s", "cut___video": "cut___video", "no_audio___00": "no audio stream",
    }
    assert set(reasons) == set(words)
    for name, word in words.items():
        assert word in reasons[name], reasons[name]


def test_a_second_build_reuses_the_first(built, monkeypatch):
    root, folder = built
    monkeypatch.setattr(vggsound.media, "read_video", lambda *_: pytest.fail("read again"))
    assert vggsound.prepare_vggsound(root / "data", root / "videos", root / "vggsound.csv", CLIP) == folder


def test_clips_of_one_video_share_a_split_and_two_percent_validate(tmp_path):
    table = tmp_path / "vggsound.csv"
    table.write_text("".join(f"video{i:06d},{start},wind,train\n" for i in range(2000) for start in (0, 50)))
    rows = vggsound.read_rows(table)
    by_video = {row.youtube_id: set() for row in rows}
    for row in rows:
        by_video[row.youtube_id].add(row.split)
    assert all(len(splits) == 1 for splits in by_video.values())
    assert 0.01 < sum(row.split == "validation" for row in rows) / len(rows) < 0.03


def test_refuses_bad_input(tmp_path):
    table = tmp_path / "v.csv"
    table.write_text("id,30,wind,train\nid,x,wind,train\n")
    with pytest.raises(UserError, match=r"v.csv line 2 is not id,start seconds,label"):
        vggsound.read_rows(table)
    with pytest.raises(UserError, match="nowhere is not a folder"):
        vggsound.prepare_vggsound(tmp_path, tmp_path / "nowhere", table, CLIP)
    table.write_text("id,30,wind,train\n")
    with pytest.raises(UserError, match=r"none of the 1 clips .*ID_SSSSSS.mp4"):
        vggsound.prepare_vggsound(tmp_path, tmp_path, table, CLIP)
