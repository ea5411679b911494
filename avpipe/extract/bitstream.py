"""What a compressed picture says about itself in its first bytes, read without decoding it.

Two facts make selective decoding exact: where decoding may start, and which pictures no other picture refers to. A
container's key-frame flag is a promise that muxers break; the network abstraction layer (NAL) headers of H.264
(ITU-T H.264, 7.3.1) and HEVC (ITU-T H.265, 7.3.1.2) are what the decoder itself goes by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

ENTRY = 1
"""Decoding may start here: no later picture refers to one before it, leading pictures apart."""
DROPPABLE = 2
"""No other picture of the same temporal layer refers to it, and it carries no parameter set."""
LAYER_SHIFT = 4
"""Above the flags: the temporal layer."""

Inspect = Callable[[bytes], int]
"""``packet -> ENTRY | DROPPABLE | temporal layer << LAYER_SHIFT``; 0 where nothing is known."""

_H264_IDR = 5
_H264_HARMLESS = (6, 9, 12)  # supplemental information, access unit delimiter, filler
_HEVC_HARMLESS = (35, 38, 39)  # access unit delimiter, filler, supplemental information


def inspector(codec: str, extradata: bytes) -> Inspect | None:
    """How to look into packets of this codec; ``None`` where the container's flags are all there is.

    Args:
        codec: canonical name: ``"h264"``, ``"hevc"``.
        extradata: the decoder configuration: avcC or hvcC (packets then hold length-prefixed units), or start codes.
    """
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
