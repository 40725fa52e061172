"""Folders of clips to compare, whatever lies in them."""

import os

import numpy as np
import pytest
import soundfile
from video_files import plain_video

from msg_jax.data import clips
from msg_jax.errors import UserError


def test_clips_are_found_behind_links_and_paired_by_stem(tmp_path, caplog, monkeypatch):
    far, root = tmp_path / "far", tmp_path / "root"
    far.mkdir()
    (root / "closed").mkdir(parents=True)
    plain_video(far / "a.mp4")
    soundfile.write(far / "a.wav", np.zeros(100), 16_000)
    soundfile.write(os.fsencode(far / os.fsdecode(b"caf\xe9.wav")), np.zeros(100), 16_000)
    (far / ".hidden.wav").touch()
    (root / "link").symlink_to(far)
    (far / "loop").symlink_to(root)
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    found = clips.find_clips(root)
    assert list(found) == ["link/a", os.fsdecode(b"link/caf\xe9")]
    assert found["link/a"] == clips.ClipFiles(root / "link" / "a.wav", root / "link" / "a.mp4")
    assert "closed cannot be listed (Permission denied)" in caplog.text


def test_a_reader_raises_only_user_errors(tmp_path):
    nan, broken = tmp_path / "nan.wav", tmp_path / "broken.mp4"
    soundfile.write(nan, np.float32([0.1, np.inf] * 8_000), 16_000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"nan.wav has sound samples that are NaN or infinite"):
        clips.Reader(nan, None, 1.0).waveform(16_000)
    broken.symlink_to(tmp_path / "nowhere.mp4")
    for call in (lambda: clips.Reader(None, broken, 1.0).frames(25.0, 16), lambda: clips.stamp(broken)):
        with pytest.raises(UserError, match=r"broken.mp4 (does not exist|cannot be read)"):
            call()
    assert clips.longest_sec({"a": clips.ClipFiles(broken, None), "b": clips.ClipFiles(nan, None)}) == 1.0
