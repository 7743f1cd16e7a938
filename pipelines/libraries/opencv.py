"""`opencv:<style>`: painting styles of OpenCV (https://opencv.org), one thread a photograph.

`oil_painting` is of opencv-contrib, which the extra ``opencv`` installs; the others are in every OpenCV.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.errors import ConfigError
from substyle.pipelines.libraries.library import Library

Pixels = NDArray[np.uint8]
Style = Callable[[Any, Pixels], Any]  # cv2 and (S, S, 3) BGR → (S, S, 3) BGR, or (S, S) grey


def stylization(sigma_s: float = 60, sigma_r: float = 0.45) -> Style:
    """Abstraction by the domain transform (Gastal and Oliveira, 2011): flat regions and dark edges."""
    given = {"sigma_s": within("sigma_s", sigma_s, 1, 200), "sigma_r": within("sigma_r", sigma_r, 0.01, 1)}
    return lambda cv2, image_SSC: cv2.stylization(image_SSC, **given)


def pencil_sketch(sigma_s: float = 60, sigma_r: float = 0.07, shade_factor: float = 0.03, color: bool = False) -> Style:
    """Pencil drawing by the domain transform, grey or in colour."""
    given = {"sigma_s": within("sigma_s", sigma_s, 1, 200), "sigma_r": within("sigma_r", sigma_r, 0.01, 1)}
    given["shade_factor"] = within("shade_factor", shade_factor, 0, 0.1)
    if not isinstance(color, bool):
        raise ValueError(f"color = {color!r}, not true or false")
    return lambda cv2, image_SSC: cv2.pencilSketch(image_SSC, **given)[int(color)]


def cartoon(
    sigma_color: float = 60, sigma_space: float = 7, levels: int = 8, block: int = 9, threshold: float = 4
) -> Style:
    """Bilateral filter (Tomasi and Manduchi, 1998), few levels of each channel, and lines of an adaptive threshold."""
    sigmas = within("sigma_color", sigma_color, 1, 255), within("sigma_space", sigma_space, 1, 100)
    step, side = 256 / whole("levels", levels, 2, 64), 2 * (whole("block", block, 3, 99) // 2) + 1
    threshold = within("threshold", threshold, -255, 255)

    def drawn(cv2: Any, image_SSC: Pixels) -> Any:  # noqa: ANN401
        smooth_SSC = image_SSC
        for _ in range(3):
            smooth_SSC = cv2.bilateralFilter(smooth_SSC, 9, *sigmas)
        grey_SS = cv2.medianBlur(cv2.cvtColor(image_SSC, cv2.COLOR_BGR2GRAY), 5)
        mean, binary = cv2.ADAPTIVE_THRESH_MEAN_C, cv2.THRESH_BINARY
        lines_SS = cv2.adaptiveThreshold(grey_SS, 255, mean, binary, side, threshold)
        flat_SSC = ((np.floor(smooth_SSC / step) + 0.5) * step).astype(np.uint8)
        return cv2.bitwise_and(flat_SSC, flat_SSC, mask=lines_SS)

    return drawn


def oil_painting(size: int = 3, dyn_ratio: int = 8) -> Style:
    """Mean colour of the most frequent grey level of a neighbourhood (Holzmann, 1988)."""
    given = whole("size", size, 1, 16), whole("dyn_ratio", dyn_ratio, 1, 127)
    return lambda cv2, image_SSC: cv2.xphoto.oilPainting(image_SSC, *given)


def within(name: str, value: float, low: float, high: float) -> float:
    """Return a number. Raises ValueError if it is none, or not in the range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} = {value!r}, not a number from {low:g} to {high:g}")
    return float(value)


def whole(name: str, value: float, low: int, high: int) -> int:
    """Return a whole number. Raises ValueError if it is none, or not in the range."""
    if within(name, value, low, high) != int(value):
        raise ValueError(f"{name} = {value!r}, not a whole number")
    return int(value)


class OpenCV(Library):
    """Nothing is drawn at random."""

    prefix, module, extra = "opencv", "cv2", "opencv"
    distributions = ("opencv-contrib-python-headless|opencv-contrib-python|opencv-python-headless|opencv-python",)

    def names(self) -> Mapping[str, Any]:
        """The styles, of which the installed OpenCV may lack one."""
        more = {"oil_painting": oil_painting} if hasattr(self.imported(self.prefix), "xphoto") else {}
        return {"stylization": stylization, "pencil_sketch": pencil_sketch, "cartoon": cartoon, **more}

    def arguments(self, place: str, name: str, *given: Any) -> dict[str, Any]:  # noqa: ANN401
        """Raises ConfigError also for a style of opencv-contrib where only OpenCV is installed."""
        if name == "oil_painting" and name not in self.names():
            allowed = "opencv-contrib: pip install opencv-contrib-python-headless in place of opencv-python-headless"
            raise ConfigError(f"{place}.of", f"{self.prefix}:{name}", allowed)
        return super().arguments(place, name, *given)

    def apply(self, made: Any, image_SSC: Pixels, seed: int) -> Any:  # noqa: ANN401
        """Apply a style to channels in OpenCV's order. Grey results become RGB."""
        del seed
        cv2 = self.imported(self.prefix)
        cv2.setNumThreads(1)
        result = made(cv2, np.ascontiguousarray(image_SSC[..., ::-1]))
        return np.repeat(result[..., None], 3, axis=2) if result.ndim == 2 else np.ascontiguousarray(result[..., ::-1])


LIBRARY = OpenCV()
