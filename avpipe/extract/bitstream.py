"""What a compressed picture says about itself in its first bytes, read without decoding it.

Three facts make selective decoding exact: where decoding may start, which pictures no other picture refers to, and that
a packet gives one picture. A container's key-frame flag is a promise that muxers break; the headers that are read here,
of H.264 (ITU-T H.264, 7.3.1), HEVC (ITU-T H.265, 7.3.1.2) and VP9 (bitstream specification, 6.2 and annex B), are what
the decoder itself goes by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

ENTRY = 1
"""Decoding may start here: no later picture refers to one before it, leading pictures apart."""
DROPPABLE = 2
"""No other picture of the same temporal layer refers to it, and it carries no parameter set."""
ODD = 4
"""It does not give exactly one picture."""
LAYER_SHIFT = 4
"""Above the flags: the temporal layer."""

Inspect = Callable[[bytes], int]
"""``packet -> ENTRY | DROPPABLE | ODD | temporal layer << LAYER_SHIFT``; 0 where nothing of it is known."""

_H264_IDR = 5
_H264_HARMLESS = (6, 9, 12)  # supplemental information, access unit delimiter, filler
_HEVC_HARMLESS = (35, 38, 39)  # access unit delimiter, filler, supplemental information


def inspector(codec: str, extradata: bytes) -> Inspect | None:
    """How to look into packets of this codec; ``None`` where the container's flags are all there is.

    Args:
        codec: canonical name: ``"h264"``, ``"hevc"``, ``"vp9"``.
        extradata: the decoder configuration: avcC or hvcC (packets then hold length-prefixed units), or start codes.
    """
    if codec == "vp9":
        return _inspect_vp9
    has_lengths = extradata[:1] == b"\x01"
    if codec == "h264":
        length_size = (extradata[4] & 3) + 1 if has_lengths and len(extradata) > 4 else 0
        return lambda packet: _inspect_h264(packet, length_size)
    if codec == "hevc":
        length_size = (extradata[21] & 3) + 1 if has_lengths and len(extradata) > 21 else 0
        return lambda packet: _inspect_hevc(packet, length_size)
    return None


def _units(packet: bytes, length_size: int) -> Iterator[int]:
    """Where each NAL unit of a packet begins."""
    if length_size:
        position = 0
        while position + length_size < len(packet):
            begin = position + length_size
            yield begin
            position = begin + int.from_bytes(packet[position:begin], "big")
    else:
        begin = packet.find(b"\0\0\1") + 3
        while 3 <= begin < len(packet):
            yield begin
            begin = packet.find(b"\0\0\1", begin) + 3


def _inspect_h264(packet: bytes, length_size: int) -> int:
    harmless = True
    for begin in _units(packet, length_size):
        kind, is_reference = packet[begin] & 31, packet[begin] & 0x60
        if kind == _H264_IDR:
            return ENTRY
        if 1 <= kind <= 4:  # a slice, or the first partition of one
            return 0 if is_reference or not harmless else DROPPABLE
        harmless = harmless and kind in _H264_HARMLESS
    return 0


def _inspect_hevc(packet: bytes, length_size: int) -> int:
    harmless = True
    for begin in _units(packet, length_size):
        if begin + 1 >= len(packet):
            break
        kind, second = packet[begin] >> 1 & 63, packet[begin + 1]
        is_base_layer = not (packet[begin] & 1 or second >> 3)
        if kind < 32 and is_base_layer:
            layer = max((second & 7) - 1, 0) << LAYER_SHIFT
            if 16 <= kind <= 21:  # BLA, IDR and CRA pictures
                return ENTRY | layer
            # The even ones below 16 are "sub-layer non-reference" pictures.
            return layer | (DROPPABLE if kind < 16 and kind % 2 == 0 and harmless else 0)
        harmless = harmless and kind in _HEVC_HARMLESS
    return 0


def _inspect_vp9(packet: bytes) -> int:
    shown, result = 0, 0
    for position, begin in enumerate(_vp9_frames(packet)):
        header = packet[begin]
        if header >> 4 & 3 == 3:  # profile 3 has one more bit
            header <<= 1
        if header & 8:  # shows a picture that is there already
            shown += 1
            continue
        shown += header >> 1 & 1
        if position == 0 and not header & 4:
            result = ENTRY
    return result if shown == 1 else result | ODD


def _vp9_frames(packet: bytes) -> Iterator[int]:
    """Where each frame of a VP9 packet begins: several where it ends in a superframe index."""
    marker = packet[-1]
    count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index = len(packet) - (2 + width * count)
    if marker & 0xE0 != 0xC0 or index < 0 or packet[index] != marker:
        yield 0
        return
    begin = 0
    for field in range(index + 1, len(packet) - 1, width):
        size = int.from_bytes(packet[field : field + width], "little")
        if size and begin < index:
            yield begin
        begin += size
