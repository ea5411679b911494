"""Headers of compressed pictures, one bit pattern at a time."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avpipe.extract.bitstream import DROPPABLE, ENTRY, LAYER_SHIFT, ODD, inspector

from ..rendering import moving, render

AVCC = bytes([1, 0x64, 0, 0x1F, 0xFF])
HVCC = bytes([1, *[0] * 20, 3])
CODECS = ["h264", "hevc", "vp9"]


def prefixed(*units: bytes) -> bytes:
    return b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)


def marked(*units: bytes) -> bytes:
    return b"".join(b"\0\0\0\1" + unit for unit in units)


def h264(kind: int, importance: int) -> bytes:
    return bytes([importance << 5 | kind, 0x88, 0x80])


def hevc(kind: int, layer: int = 0) -> bytes:
    return bytes([kind << 1, layer + 1, 0x80])


@pytest.mark.parametrize(("extradata", "pack"), [(AVCC, prefixed), (b"", marked), (b"\0\0\0\1\x67", marked)])
@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ([h264(7, 3), h264(8, 3), h264(5, 3)], ENTRY),
        ([h264(1, 2)], 0),  # refers and is referred to
        ([h264(1, 0)], DROPPABLE),
        ([h264(9, 0), h264(6, 0), h264(1, 0)], DROPPABLE),  # a delimiter and some information before it
        ([h264(8, 3), h264(1, 0)], 0),  # later pictures may need the parameter set
        ([h264(6, 0)], 0),
    ],
)
def test_h264(extradata: bytes, pack, units: list[bytes], expected: int) -> None:  # type: ignore[no-untyped-def]
    look = inspector("h264", extradata)
    assert look is not None
    assert look(pack(*units)) == expected


@pytest.mark.parametrize(("extradata", "pack"), [(HVCC, prefixed), (b"", marked)])
@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ([hevc(32), hevc(33), hevc(34), hevc(19)], ENTRY),
        ([hevc(21)], ENTRY),
        ([hevc(1)], 0),
        ([hevc(0)], DROPPABLE),
        ([hevc(39), hevc(8)], DROPPABLE),
        ([hevc(0, layer=2)], DROPPABLE | 2 << LAYER_SHIFT),
        ([hevc(34), hevc(0)], 0),
        ([bytes([0, 1 << 3 | 1, 0])], 0),  # of another layer than the base
    ],
)
def test_hevc(extradata: bytes, pack, units: list[bytes], expected: int) -> None:  # type: ignore[no-untyped-def]
    look = inspector("hevc", extradata)
    assert look is not None
    assert look(pack(*units)) == expected


KEY, INTER, HIDDEN, AGAIN = b"\x82data", b"\x86data", b"\x84data", b"\x88"


def together(*frames: bytes) -> bytes:
    """A VP9 superframe."""
    marker = bytes([0xC0 | 1 << 3 | len(frames) - 1])
    return b"".join(frames) + marker + b"".join(len(frame).to_bytes(2, "little") for frame in frames) + marker


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (KEY, ENTRY),
        (INTER, 0),
        (AGAIN, 0),
        (HIDDEN, ODD),
        (together(HIDDEN, INTER), 0),
        (together(INTER, INTER), ODD),
        (together(b"\x80data", INTER), ENTRY),  # a hidden key frame, and what is shown of it
        (b"\xb1data", ENTRY),  # profile 3
    ],
)
def test_vp9(packet: bytes, expected: int) -> None:
    look = inspector("vp9", b"")
    assert look is not None
    assert look(packet) == expected


def test_of_other_codecs_nothing_is_known() -> None:
    assert inspector("mpeg4", b"") is None


@given(codec=st.sampled_from(CODECS), extradata=st.sampled_from([b"", AVCC, HVCC]), packet=st.binary(min_size=1))
def test_any_bytes_can_be_looked_at(codec: str, extradata: bytes, packet: bytes) -> None:
    look = inspector(codec, extradata)
    assert look is not None
    assert 0 <= look(packet) < 256


@pytest.mark.parametrize(
    ("name", "codec", "share"), [("a.mp4", "libx264", 0.3), ("b.ts", "libx264", 0.3), ("c.mkv", "libx265", 0.3)]
)
def test_real_streams_have_what_the_decoder_sees(tmp_path: Path, name: str, codec: str, share: float) -> None:
    path = render(tmp_path / name, moving(48), codec=codec)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        look = inspector(stream.codec_context.codec.canonical_name, stream.codec_context.extradata or b"")
        assert look is not None
        packets = [packet for packet in container.demux(stream) if packet.size]
        seen = [look(bytes(packet)) for packet in packets]
    assert [bool(flags & ENTRY) for flags in seen] == [packet.is_keyframe for packet in packets]
    assert sum(bool(flags & DROPPABLE) for flags in seen) > share * len(seen)
