"""What the two embedded encoders see and hear."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from avpipe.extract.encoders import colour_grid, log_mel
from avpipe.extract.media import Frames
from avpipe.pipeline.config import parse
from avpipe.pipeline.errors import ConfigError

from . import toys

GRID, ORIENTATIONS = 8, 4
RED = (255, 0, 0)


def look(*pictures: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float64]]:
    """What the colour grid makes of frames: ``colour (N, 8, 8, 3)``, ``edges (N, 4, 4, 4)``, ``change (N, 8, 8)``."""
    encoder = colour_grid.Encoder(colour_grid.Config(grid=GRID, orientations=ORIENTATIONS), "v")
    video = Frames(data=np.stack(pictures), pts_seconds=np.arange(len(pictures)) / 8)
    (features,) = encoder.encode([encoder.prepare(toys.clip("v", video=video))])
    colour, edges, change = np.split(features.data.astype(np.float64), [192, 192 + 64], axis=1)
    return {
        "colour": colour.reshape(-1, GRID, GRID, 3),
        "edges": edges.reshape(-1, GRID // 2, GRID // 2, ORIENTATIONS),
        "change": change.reshape(-1, GRID, GRID),
    }


def picture(size: int = 64, *, top: float = 0.0, left: float = 0.0, side: float = 0.25) -> npt.NDArray[np.uint8]:
    """A red square on black; lengths in parts of the picture."""
    frame = np.zeros((size, size, 3), np.uint8)
    frame[round(top * size) : round((top + side) * size), round(left * size) : round((left + side) * size)] = RED
    return frame


def stripes(angle: str) -> npt.NDArray[np.uint8]:
    across = np.broadcast_to((np.arange(64) // 4 % 2 * 255).astype(np.uint8), (64, 64))
    diagonal = ((np.arange(64)[:, None] + np.arange(64)) // 4 % 2 * 255).astype(np.uint8)
    plane = {"upright": across, "level": across.T, "falling": diagonal[:, ::-1], "rising": diagonal}[angle]
    return np.repeat(plane[..., None], 3, axis=2)


def test_colour_is_found_where_it_is() -> None:
    colour = look(picture(top=0.5, left=0.25))["colour"][0]
    np.testing.assert_allclose(colour[4:6, 2:4], np.broadcast_to([2, -2, -2], (2, 2, 3)), atol=1e-6)
    colour[4:6, 2:4] = -2
    np.testing.assert_allclose(colour, -2, atol=1e-6)


def test_a_grey_middle_is_zero() -> None:
    np.testing.assert_allclose(look(np.full((64, 64, 3), 128, np.uint8))["colour"], 0, atol=0.01)


@pytest.mark.parametrize(("angle", "direction"), [("upright", 0), ("rising", 1), ("level", 2), ("falling", 3)])
def test_edges_are_sorted_by_direction(angle: str, direction: int) -> None:
    edges = look(stripes(angle))["edges"][0]
    assert np.all(edges[1:3, 1:3].argmax(axis=-1) == direction)
    others = np.delete(edges[1:3, 1:3], direction, axis=-1)
    assert others.max() < 0.2 * edges[1:3, 1:3, direction].min()


def test_change_has_a_sign_and_a_place() -> None:
    change = look(picture(top=0.0), picture(top=0.25), picture(top=0.25))["change"]
    assert np.all(change[0] == 0)  # nothing came before
    assert np.all(change[1, 0:2, 0:2] < -1)  # it left
    assert np.all(change[1, 2:4, 0:2] > 1)  # it came
    assert np.all(change[2] == 0)  # it stayed


@pytest.mark.parametrize("size", [32, 128, 360])
def test_features_hardly_depend_on_resolution(size: int) -> None:
    at_64, at_size = (look(picture(pixels, top=0.25, left=0.5)) for pixels in (64, size))
    np.testing.assert_allclose(at_size["colour"], at_64["colour"], atol=0.02)
    np.testing.assert_allclose(at_size["edges"], at_64["edges"], atol=0.35)


def test_values_are_of_the_order_of_one() -> None:
    encoder = colour_grid.Encoder(colour_grid.Config(), "v")
    data = encoder.prepare(toys.clip("v", video=toys.frames(8)))["data"]
    assert data.shape == (8, 352)
    assert np.abs(data).max() < 12
    assert 0.1 < data.astype(np.float64).std() < 3


def hear(samples: npt.NDArray[np.float32], **config: float) -> dict[str, npt.NDArray[np.float64]]:
    """What the log-mel rows make of sound: ``energy (T, 64)``, ``onset (T, 16)`` and ``seconds (T,)``."""
    encoder = log_mel.Encoder(parse(log_mel.Config, config, "test"), "a")
    (features,) = encoder.encode([encoder.prepare(toys.clip("a", audio=samples))])
    return {"energy": features.data[:, :64], "onset": features.data[:, 64:], "seconds": features.pts_seconds}


def test_four_seconds_make_a_hundred_rows() -> None:
    heard = hear(toys.noise(4.0))
    assert heard["energy"].shape == (100, 64)
    # Row 0 pools the frames at 0, 10, 20 and 30 ms, of 25 ms each; the last row holds two frames only.
    np.testing.assert_allclose(heard["seconds"][:3], [0.0275, 0.0675, 0.1075])
    np.testing.assert_allclose(heard["seconds"][-1], (3.96 + 3.97 + 0.025) / 2)


def test_loudness_matters() -> None:
    soft, loud = hear(toys.tone(1.0, level=0.05)), hear(toys.tone(1.0, level=0.5))
    band = loud["energy"][10].argmax()
    np.testing.assert_allclose(loud["energy"][10, band] - soft["energy"][10, band], np.log(100) / 4, rtol=1e-4)


def test_pitch_matters() -> None:
    bands = [hear(toys.tone(0.5, hertz=hertz))["energy"][5].argmax() for hertz in (200, 800, 3200)]
    assert np.all(np.diff(bands) > 5)


def test_silence_is_the_same_everywhere() -> None:
    heard = hear(np.zeros(toys.SAMPLE_RATE, np.float32))
    np.testing.assert_allclose(heard["energy"], (np.log(1e-5) + 5) / 4, rtol=1e-5)
    assert np.all(heard["onset"] == 0)


@pytest.mark.parametrize("at", [0.5, 1.21, 1.77])
def test_onset_is_in_the_row_where_it_happens(at: float) -> None:
    samples = np.zeros(3 * toys.SAMPLE_RATE, np.float32)
    first = round(at * toys.SAMPLE_RATE)
    samples[first : first + 2400] = toys.tone(0.15)
    heard = hear(samples)
    row = heard["onset"].mean(axis=1).argmax()
    assert abs(heard["seconds"][row] - at) < 0.045
    assert heard["onset"][row].max() > 1
    quiet = np.abs(heard["seconds"] - at) > 0.3
    assert heard["onset"][quiet].max() == 0


def test_what_lies_behind_max_seconds_is_not_heard() -> None:
    samples = toys.noise(3.0)
    np.testing.assert_array_equal(hear(samples, max_seconds=1.0)["energy"], hear(samples[:16000])["energy"])
    assert len(hear(samples)["energy"]) == 75


def test_mels_must_fill_the_onset_bands() -> None:
    with pytest.raises(ConfigError, match=r"mels: .*multiple of 16, got 40"):
        hear(toys.noise(0.1), mels=40)
