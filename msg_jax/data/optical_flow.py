"""Dense optical flow of a video: how far each part of the picture moves, and where to."""

import importlib
from typing import Any

from jaxtyping import Float32, UInt8
import numpy as np

from msg_jax.errors import UserError

_SCALE = 16.0  # brings shares of the picture's side to order one
_LEAST_WINDOW, _WINDOW_SHARE = 7, 15


def optical_flow(video: UInt8[np.ndarray, "T H W 3"], grid: int) -> Float32[np.ndarray, "T {2*grid*grid}"]:
    """The mean flow (x, y) from the frame before in each of `grid` x `grid` cells, as a share of the picture's side times 16.

    The first frame has no predecessor and gets 0. By OpenCV's method of Farneback (2003). Raises UserError without OpenCV.
    """
    try:
        cv2: Any = importlib.import_module("cv2")  # an extra
    except ImportError as error:
        raise UserError("optical flow needs OpenCV: pip install 'msg_jax[flow]'") from error
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video]
    window = max(_LEAST_WINDOW, min(video.shape[1:3]) // _WINDOW_SHARE)
    options = dict(pyr_scale=0.5, levels=3, winsize=window, iterations=3, poly_n=5, poly_sigma=1.1, flags=0)
    flows = np.zeros((len(video), grid, grid, 2), np.float32)
    for i in range(1, len(video)):
        flow = cv2.calcOpticalFlowFarneback(grey[i - 1], grey[i], None, **options) / np.array(video.shape[2:0:-1])
        for row, band in enumerate(np.array_split(flow, grid, axis=0)):
            for column, cell in enumerate(np.array_split(band, grid, axis=1)):
                flows[i, row, column] = _SCALE * cell.mean(axis=(0, 1))
    return flows.reshape(len(video), -1)
