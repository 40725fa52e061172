"""Waveform and spectrogram of a sound as one PNG, from edge to edge, so that a playhead can be drawn over it."""

import io

from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np

_WINDOW = 1024
_QUIETEST_DB = -80.0
_ROWS = 160
_SILENCE = 1e-4


def picture(waveform: Float[np.ndarray, " samples"], hz: int, size_px: tuple[int, int] = (900, 300)) -> bytes:
    """The waveform above, and below it the spectrogram: mel-spaced up to half of `hz`, 80 dB from dark to bright.

    Both are drawn as if the loudest sample were 1, so that quiet sounds can be seen.
    """
    waveform = waveform / max(np.abs(waveform).max(initial=0), _SILENCE)
    figure = Figure(figsize=(size_px[0] / 100, size_px[1] / 100), dpi=100, facecolor="#0b0710")
    FigureCanvasAgg(figure)
    top = figure.add_axes((0, 0.6, 1, 0.4))
    blocks = np.array_split(waveform, min(size_px[0], max(1, len(waveform))))
    across = np.arange(len(blocks))
    top.fill_between(across, [block.min(initial=0) for block in blocks], [block.max(initial=0) for block in blocks],
                     color="#fb8861", lw=0)
    top.set(xlim=(0, len(blocks) - 1 or 1), ylim=(-1, 1))
    bottom = figure.add_axes((0, 0, 1, 0.6))
    rows = _mel_spaced(_spectrogram(waveform), hz)
    bottom.imshow(rows, origin="lower", aspect="auto", cmap="magma", vmin=_QUIETEST_DB, vmax=0)
    for axes in (top, bottom):
        axes.set_axis_off()
    written = io.BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()


def _spectrogram(waveform: np.ndarray) -> np.ndarray:
    """Decibels below a full-scale sine, (frequencies, times)."""
    hop = max(_WINDOW // 4, len(waveform) // 2000)
    padded = np.pad(waveform, _WINDOW // 2)
    starts = np.arange(0, len(padded) - _WINDOW + 1, hop)
    window = np.hanning(_WINDOW)
    spectra = np.abs(np.fft.rfft(padded[starts[:, None] + np.arange(_WINDOW)] * window)) / (window.sum() / 2)
    return 20 * np.log10(np.maximum(spectra, 10 ** (_QUIETEST_DB / 20))).T


def _mel_spaced(decibels: np.ndarray, hz: int) -> np.ndarray:
    """Rows at equal steps of the mel scale (O'Shaughnessy: 2595 lg(1 + f / 700))."""
    mels = np.linspace(0, 2595 * np.log10(1 + hz / 2 / 700), _ROWS)
    rows = 700 * (10 ** (mels / 2595) - 1) / (hz / 2) * (len(decibels) - 1)
    below = np.floor(rows).astype(int)
    share = (rows - below)[:, None]
    return (1 - share) * decibels[below] + share * decibels[np.minimum(below + 1, len(decibels) - 1)]
