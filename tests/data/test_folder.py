import itertools
import json
import os
import unicodedata

import av
import grain
import numpy as np
import pytest
from video_files import EVEN_MS, make_video

from msg_jax import clip as clip_module
from msg_jax.data import containers, folder, media, media_writer
from msg_jax.errors import UnreadableError, UserError

CLIP = clip_module.ClipSpec(duration_sec=0.8, video_px=16, clip_video_px=8)


def tone(hz, seconds):
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(16_000 * seconds)) / 16_000)


def write(path, seconds, pitch_hz=500):
    """Writes a video that brightens by 5 levels per frame at 25 Hz, with a tone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.arange(round(25 * seconds), dtype=np.uint8) * 5
    frames = np.broadcast_to(levels[:, None, None, None], (len(levels), 16, 16, 3))
    path.write_bytes(media_writer.encode_video(frames, 25.0, tone(pitch_hz, seconds), 16_000))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Five usable videos of 0.8, 1.2, 1.6, 1.8 and 0.76 s, and five unusable files."""
    root = tmp_path_factory.mktemp("videos")
    for name, seconds in {"b.mp4": 0.8, "a.mp4": 1.2, "sub/c.MP4": 1.6, "sub/deep/d.m4v": 1.8, "e.mov": 0.76}.items():
        write(root / name, seconds)
    write(root / "short.mp4", 0.6)
    with av.open(str(root / "a.mp4")) as source, av.open(str(root / "silent.mp4"), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0], opaque=True)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    (root / "text.mkv").write_text("words")
    (root / "empty.webm").touch()
    (root / "cut.mp4").write_bytes((root / "a.mp4").read_bytes()[:900])
    (root / ".hidden.mp4").touch()
    (root / "notes.txt").touch()
    return root


def ids(source):
    return [source[i]["id"] for i in range(len(source))]


def sources(root, **options):
    return {split: folder.FolderSource(root, CLIP, split, **options) for split in folder.SPLITS}


def all_ids(root, **options):
    return sorted(itertools.chain.from_iterable(map(ids, sources(root, **options).values())))


WINDOWS = {
    "a.mp4": [0.0, 0.4],
    "b.mp4": [0.0],
    "e.mov": [0.0],
    "sub/c.MP4": [0.0, 0.4, 0.8],
    "sub/deep/d.m4v": [0.0, 0.4, 0.8],
}


def test_windows_at_a_stride(root):
    found = all_ids(root, stride_sec=0.4)
    assert found == [f"{name}@{start:.3f}" for name, starts in WINDOWS.items() for start in starts]
    capped = all_ids(root, stride_sec=0.4, windows_per_video=2)
    assert capped == [f"{name}@{start:.3f}" for name, starts in WINDOWS.items() for start in starts[:2]]
    whole = sum(len(source) for source in sources(root).values())  # without overlap only the two longest hold two
    assert whole == 1 + 1 + 1 + 2 + 2


def test_skipped_files_are_listed_with_reasons(root):
    source = folder.FolderSource(root, CLIP, "train")
    reasons = {entry["path"].removeprefix(f"{root}/"): entry["reason"] for entry in source.skipped}
    assert list(reasons) == ["cut.mp4", "empty.webm", "short.mp4", "silent.mp4", "text.mkv"]
    expected = ["cut short", "(0 bytes)", "lasts 0.60 s, shorter than one window of 0.8 s", "no audio", "not a video"]
    assert all(text in reason for text, reason in zip(expected, reasons.values()))


def test_every_file_is_in_exactly_one_split(root, tmp_path):
    def files(seed):
        found = sources(root, seed=seed, stride_sec=0.4, index_path=tmp_path / "index.json")
        return {split: {name.split("@")[0] for name in ids(source)} for split, source in found.items()}

    for seed in (0, 1):
        parts = files(seed)
        assert all(parts.values()) and sum(map(len, parts.values())) == 5
        assert set.union(*parts.values()) == set(WINDOWS)
    assert files(0) == files(0) != files(1)


@pytest.mark.parametrize("count, shares, sizes", [(3, (0.1, 0.1), (1, 1, 1)), (5, (0.9, 0.9), (1, 1, 3)),
                                                  (100, (0.1, 0.2), (70, 10, 20))])  # fmt: skip
def test_split_sizes(tmp_path, count, shares, sizes):
    names = [f"{i}.mp4" for i in range(count)]
    parts = [folder._split_files(names, tmp_path, split, 0, *shares) for split in folder.SPLITS]
    assert tuple(map(len, parts)) == sizes and sorted(itertools.chain(*parts)) == sorted(names)


def test_record(root):
    (root / "captions.csv").write_text("file,caption\nsub/deep/d.m4v, a tone\n", encoding="utf-8-sig")
    try:
        everything = sources(root, stride_sec=0.4)
    finally:
        (root / "captions.csv").unlink()
    records = {source[i]["id"]: source[i] for source in everything.values() for i in range(len(source))}
    record = records["sub/deep/d.m4v@0.800"]
    assert record["caption"] == "a tone" and records["a.mp4@0.400"]["caption"] == ""
    assert record["video"].shape == (20, 16, 16, 3) and record["clip_video"].shape == (5, 8, 8, 3)
    assert record["video"].dtype == record["clip_video"].dtype == np.uint8
    np.testing.assert_allclose(record["video"].mean((1, 2, 3)), 5 * np.arange(20, 40), atol=1.5)
    np.testing.assert_allclose(record["clip_video"].mean((1, 2, 3)), 5 * np.arange(21, 41, 4), atol=1.5)
    assert record["waveform"].shape == (CLIP.audio_samples,) and record["waveform"].dtype == np.float32
    np.testing.assert_allclose(record["waveform"], tone(500, 2)[12_800 : 12_800 + CLIP.audio_samples], atol=0.05)
    assert record["events"].shape == (48, 3) and (record["events"] == -1).all() and record["has_events"] is False
    source = everything["train"]
    assert (source.spec, source.class_names, source.split) == (CLIP, (), "train")
    served = [record["id"] for record in grain.MapDataset.source(source)]
    assert served == ids(source)


@pytest.mark.parametrize("text, fault", [
    (b"file,text\na.mp4,x\n", "captions.csv lacks the column caption"),
    (b"", "captions.csv lacks the column caption and file"),
    (b"file,caption\na.mp4,dog barks, a car passes\n", "captions.csv line 2 has more than 2 columns"),
    (b'file,caption\na.mp4,x\nb.mp4,"dog\n', "captions.csv line 3 cannot be read"),
    (b'file,caption\n\na.mp4,"dog\nb.mp4,"cat"\n', "captions.csv line 3 cannot be read"),
    (b'file,caption\na.mp4,x\nb.mp4,"dog\nc.mp4,"\nd.mp4,y\n', "captions.csv line 3 has a quote that is not closed"),
    (b"file,caption\na.mp4,x\na.mp4,y\n", "captions.csv line 3: a.mp4 appears twice"),
    (b"file,caption\na.mp4\n", "captions.csv line 2: a.mp4 has no caption"),
    (b"file,caption\na.mp4,caf\xe9\n", "captions.csv cannot be read .* UTF-8"),
])  # fmt: skip
def test_bad_captions(tmp_path, text, fault):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "captions.csv").write_bytes(text)
    with pytest.raises(UserError, match=fault):
        folder.FolderSource(tmp_path, CLIP, "train")


def captions_of(names, root, text):
    (root / "captions.csv").write_text(text, encoding="utf-8")
    return folder._read_captions(root, names)


def test_captions_may_be_quoted(tmp_path):
    text = 'file,caption\n\na.mp4, "a dog, and ""cats"""\nb.mp4,a 12" record\n"c, d.mp4",\n'
    names = ["a.mp4", "b.mp4", "c, d.mp4"]
    assert captions_of(names, tmp_path, text) == {"a.mp4": 'a dog, and "cats"', "b.mp4": 'a 12" record', "c, d.mp4": ""}


def test_rows_without_a_video_are_counted_in_a_warning(tmp_path, caplog):
    """As after a partial download."""
    text = "file,caption\na.mp4,dog\nb.mp4,cat\nc.mp4,bird\n"
    for _ in range(3):  # each split reads them
        assert captions_of(["b.mp4"], tmp_path, text) == {"b.mp4": "cat"}
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "captions.csv: 2 of 3 rows name videos that are not under" in record.message


def test_names_that_are_not_utf8_and_files_behind_links(tmp_path):
    far, root = tmp_path / "far", tmp_path / "root"
    names = [os.fsdecode(b"caf\xe9.mp4"), "\u9577" * 80 + ".mp4", "-26aVY_000030.mp4"]
    for name in names:
        write(far / name, 1.0)
    root.mkdir()
    (root / "link").symlink_to(far)
    (root / "broken.mp4").symlink_to(far / "nowhere.mp4")
    for _ in range(2):  # the second time from the index
        source = sources(root, index_path=tmp_path / "index.json")
        assert all_ids(root, index_path=tmp_path / "index.json") == sorted(f"link/{name}@0.000" for name in names)
        (row,) = source["train"].skipped
        assert row["path"] == str(root / "broken.mp4") and "does not exist" in row["reason"]
        json.dumps([source["train"][0]["id"], source["train"].skipped])


def test_sound_with_nan_is_skipped_when_videos_are_found(tmp_path):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write(tmp_path / name, 1.0)
    sound = np.full((1, 48_000), 0.1, np.float32)
    sound[0, 40_000] = np.nan  # after the only window
    pictures = np.zeros((25, 16, 16, 3), np.uint8)
    make_video(tmp_path / "nan.mkv", list(pictures), EVEN_MS[:25], sound=sound, sound_codec="pcm_f32le")
    (row,) = folder.FolderSource(tmp_path, CLIP, "train").skipped
    assert row["path"] == str(tmp_path / "nan.mkv") and "nan.mkv has sound samples that are NaN" in row["reason"]


def test_a_surprise_of_a_decoder_is_a_row(tmp_path, monkeypatch):
    for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4"):
        write(tmp_path / name, 1.0)
    extent_of = containers.Extent.of

    def surprise(container, video, shown):
        if container.name.endswith("b.mp4"):
            raise ZeroDivisionError("Fraction(1, 0)")
        return extent_of(container, video, shown)

    monkeypatch.setattr(containers.Extent, "of", surprise)
    source = folder.FolderSource(tmp_path, CLIP, "train")
    assert [row["path"] for row in source.skipped] == [str(tmp_path / "b.mp4")]

    def broken(*_):
        raise ValueError("31 is not a valid Type")

    monkeypatch.setattr(media, "_shown_size", broken)
    with pytest.raises(UnreadableError, match=r"is damaged \(31 is not a valid Type\)"):
        source[0]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_captions_match_in_any_unicode_form(tmp_path, form):
    """macOS writes file names in NFD, and spreadsheets write NFC."""
    stored, written = (unicodedata.normalize(each, "caf\u00e9.mp4") for each in (form, "NFD" if form == "NFC" else "NFC"))
    assert stored != written
    assert captions_of({stored: ""}, tmp_path, f"file,caption\n{written},dog\n") == {stored: "dog"}
    both = f"file,caption\n{written},dog\n{stored},cat\n"
    assert captions_of({stored: "", written: ""}, tmp_path, both) == {written: "dog", stored: "cat"}
    with pytest.raises(UserError, match="appears twice"):
        captions_of({stored: ""}, tmp_path, both)


def test_too_few_videos_and_bad_arguments(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write(tmp_path / name, 1.0)
    with pytest.raises(UserError, match=r"has 2 usable videos, and at least 3 are needed"):
        folder.FolderSource(tmp_path, CLIP, "train")
    with pytest.raises(UserError, match=r"nowhere is not a folder"):
        folder.FolderSource(tmp_path / "nowhere", CLIP, "train")
    with pytest.raises(UserError, match=r"split is 'valid'; choose one of train, validation, test"):
        folder.FolderSource(tmp_path, CLIP, "valid")


def test_the_index_saves_probing_until_a_file_changes(tmp_path, monkeypatch):
    index, probed = tmp_path / "cache" / "index.json", []
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write(tmp_path / name, 1.0)
    (tmp_path / "broken.mp4").write_text("words")
    probe = media.probe
    monkeypatch.setattr(media, "probe", lambda path: probed.append(path.name) or probe(path))
    first = folder.FolderSource(tmp_path, CLIP, "train", index_path=index)
    assert sorted(probed) == ["a.mp4", "b.mp4", "broken.mp4", "c.mp4"]
    second = folder.FolderSource(tmp_path, CLIP, "train", index_path=index)
    assert len(probed) == 4 and second.skipped == first.skipped and ids(second) == ids(first)
    write(tmp_path / "b.mp4", 1.6)
    assert sum(len(s) for s in sources(tmp_path, index_path=index).values()) == 1 + 2 + 1 and probed[4:] == ["b.mp4"]
    (tmp_path / "a.mp4").unlink()
    write(tmp_path / "new.mp4", 1.0)
    final = sources(tmp_path, index_path=index, index_is_final=True)
    assert sum(len(s) for s in final.values()) == 1 + 2 + 1 and len(probed) == 5
    assert [path.name for path in index.parent.iterdir()] == ["index.json"]
    for text in ("{", "[1, 2]", json.dumps({"a.mp4": [[1, 2], {"length": 3}]})):
        index.write_text(text)
        with pytest.raises(UserError, match=r"index.json is no index of videos .* delete it"):
            folder.FolderSource(tmp_path, CLIP, "train", index_path=index)


def test_a_file_that_breaks_after_probing_is_named(tmp_path):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write(tmp_path / name, 1.0)
    source = folder.FolderSource(tmp_path, CLIP, "train")
    path = tmp_path / source[0]["id"].split("@")[0]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UnreadableError, match=path.name) as error:
        source[0]
    assert error.value.row == {"path": str(path), "reason": str(error.value)}


@pytest.mark.parametrize("streams", [("video",), ("clip_video",), ("clip_video", "video")])
def test_only_the_streams_that_are_asked_for_are_decoded(root, streams, monkeypatch):
    whole, asked, read_video = folder.FolderSource(root, CLIP, "train")[0], [], media.read_video
    monkeypatch.setattr(media, "read_video", lambda path, grids, *rest: asked.extend(grids) or read_video(path, grids, *rest))
    record = folder.FolderSource(root, CLIP, "train", streams=streams)[0]
    assert [grid.px for grid in asked] == [{"video": 16, "clip_video": 8}[name] for name in streams]
    assert record.keys() == whole.keys() - ({"video", "clip_video"} - set(streams))
    for name in record:
        np.testing.assert_array_equal(record[name], whole[name])
