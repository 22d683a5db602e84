"""Pictures of two things side by side, looked at one half at a time: the oracles were trained to see one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from excise.miniature.judging import Verdicts

SHOWN_AT = 20  # pixels of a canvas of 32 to which half a picture's middle, 16 by 16, is enlarged


class Looks:
    """Oracles' verdicts on views of a picture, whole and halves: what is seen in one is seen."""

    def __init__(self, views: Sequence[Verdicts]) -> None:
        self.views = views

    def shows(self, group: str, name: str) -> np.ndarray:
        """Per picture: every oracle sees it in some view."""
        seen = [
            np.any([view.by_oracle[number][group] == name for view in self.views], axis=0)
            for number in range(len(self.views[0].by_oracle))
        ]
        shown: np.ndarray = np.all(seen, axis=0)
        return shown


def halves(images: np.ndarray) -> list[np.ndarray]:
    """The middles of the left and the right halves, uint8 (n, h, w, 3), each enlarged on a plain canvas."""
    from PIL import Image

    count, height, width, _ = images.shape
    edges = images[:, [0, 1, 2, 3, -4, -3, -2, -1]].reshape(count, -1, 3)
    plain = np.median(edges, axis=1).astype(np.uint8)[:, None, None]
    start = (height - SHOWN_AT) // 2
    inside = slice(start, start + SHOWN_AT)
    found = []
    for left in (0, width // 2):
        view = np.broadcast_to(plain, images.shape).copy()
        parts = images[:, height // 4 : -height // 4, left : left + width // 2]
        size = (SHOWN_AT, SHOWN_AT)
        view[:, inside, inside] = [
            np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BICUBIC)) for part in parts
        ]
        found.append(view)
    return found
