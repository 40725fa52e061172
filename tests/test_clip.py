"""Derived lengths against the published ones (MMAudio's sequence configurations)."""

import dataclasses

import pytest

from msg_jax.clip import MMAUDIO_16K, MMAUDIO_44K, TINY, ClipSpec

LENGTHS = ("video_frames", "clip_video_frames", "sync_tokens", "latent_tokens", "mel_frames", "audio_samples")


@pytest.mark.parametrize(("spec", "lengths"), [
    (MMAUDIO_16K, (200, 64, 192, 250, 500, 128_000)),
    (MMAUDIO_44K, (200, 64, 192, 345, 690, 353_280)),
    (TINY, (80, 20, 80, 40, 160, 51_200)),
    (dataclasses.replace(MMAUDIO_16K, duration_sec=4.96), (124, 39, 112, 155, 310, 79_360)),  # MMAudio's own shorter clips
    (dataclasses.replace(MMAUDIO_16K, duration_sec=7.875), (196, 63, 184, 247, 494, 126_464)),
    (dataclasses.replace(MMAUDIO_44K, duration_sec=5.0), (125, 40, 112, 216, 432, 221_184)),
])
def test_lengths_equal_the_published_ones(spec, lengths):
    assert tuple(getattr(spec, name) for name in LENGTHS) == lengths


def test_dict_round_trip_and_first_difference():
    assert ClipSpec.from_dict(MMAUDIO_44K.to_dict()) == MMAUDIO_44K
    assert TINY.difference(TINY) is None
    other = dataclasses.replace(TINY, mel=dataclasses.replace(TINY.mel, hop_samples=256))
    assert TINY.difference(other) == "mel.hop_samples is 320 here, 256 there"
