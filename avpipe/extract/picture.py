"""From a decoded frame to an upright RGB picture with square pixels."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import SideData, Type
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, ColorTrc, Interpolation, VideoReformatter

from avpipe.pipeline.errors import ClipError

# RGB, BT.709, unspecified, FCC, BT.601 (twice), SMPTE 240M and BT.2020: the matrices that swscale has.
_KNOWN_MATRICES = (0, 1, 2, 4, 5, 6, 7, 9)
_HDR_CURVES = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
_MOST_STRETCH = 4


class PictureMaker:
    """Turns the frames of one clip into RGB pictures of one size.

    - Colours: by the matrix and range that the stream declares; BT.601 and limited range where it declares none,
      whatever the size, as every decoder of the field does. What has more than 8 bits is reduced to 8, high dynamic
      range without tone mapping.
    - Pixels: made square by changing the width; the height is kept.
    - Orientation: rotated and mirrored as the display matrix says, by multiples of 90 degrees.
    - A picture of another size than the stream's first is scaled to it.

    Args:
        width: of the coded picture; 0 where the header does not say: that of the first frame.
        height: of the coded picture, likewise.
        pixel_aspect_ratio: width of a pixel by its height; ``None`` if not declared.
        notes: gets what a user should know, each fact once.
    """

    def __init__(self, width: int, height: int, pixel_aspect_ratio: Fraction | None, notes: list[str]) -> None:
        self._notes = notes
        self._ratio = pixel_aspect_ratio or Fraction(1)
        if not Fraction(1, _MOST_STRETCH) <= self._ratio <= _MOST_STRETCH:
            self._note(f"pixel aspect ratio ignored: {self._ratio}")
            self._ratio = Fraction(1)
        self._coded_size = width, height
        self._size = self._square(width, height)
        self._orientation: tuple[bool, bool, bool] | None = None
        self._reformatter = VideoReformatter()

    def rgb(self, frame: VideoFrame) -> npt.NDArray[np.uint8]:
        """The picture of one frame, ``(height, width, 3)``: a view of memory whose rows may lie apart.

        Raises:
            ClipError: ``"decode"``: a pixel format that cannot be converted.
        """
        if self._orientation is None:
            self._orientation = self._read_orientation(frame)
        if not all(self._coded_size):
            self._coded_size = frame.width, frame.height
            self._size = self._square(*self._coded_size)
        if (frame.width, frame.height) != self._coded_size:
            self._note(f"picture size changes from {'x'.join(map(str, self._coded_size))}: scaled back")
        if frame.color_trc in _HDR_CURVES:
            self._note("high dynamic range: converted to 8 bits without tone mapping")
        matrix = None if frame.colorspace in _KNOWN_MATRICES else Colorspace.ITU601
        if matrix is not None:
            self._note(f"colour matrix {frame.colorspace} read as BT.601")
        is_scaled = (frame.width, frame.height) != self._size
        try:
            picture: npt.NDArray[Any] = self._reformatter.reformat(
                frame,
                *self._size,
                format="rgb24",
                src_colorspace=matrix,
                interpolation=Interpolation.BICUBIC if is_scaled else Interpolation.BILINEAR,
                threads=1,
            ).to_ndarray()
        except (ValueError, OSError) as error:
            raise ClipError("decode", f"pixel format {frame.format.name} cannot become RGB: {error}") from None
        transpose, flip_columns, flip_rows = self._orientation
        if transpose:
            picture = picture.transpose(1, 0, 2)
        return picture[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]

    def _square(self, width: int, height: int) -> tuple[int, int]:
        """The size with square pixels."""
        return max(1, round(width * self._ratio)), height

    def _read_orientation(self, frame: VideoFrame) -> tuple[bool, bool, bool]:
        """Transpose, then flip columns, then flip rows: what the display matrix asks for."""
        side_data = cast(Mapping[Type, SideData], frame.side_data)  # the stub knows of motion vectors only
        with contextlib.suppress(KeyError):
            matrix = np.frombuffer(bytes(side_data[Type.DISPLAYMATRIX]), np.int32)
            # (x, y) is shown at (a x + c y, b x + d y), in 16.16 fixed point.
            a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
            if a and d and not b and not c:
                return False, a < 0, d < 0
            if b and c and not a and not d:
                return True, c < 0, b < 0
            self._note(f"orientation ignored: the display matrix [{a} {b}; {c} {d}] is no multiple of 90 degrees")
        return False, False, False

    def _note(self, note: str) -> None:
        if note not in self._notes:
            self._notes.append(note)
