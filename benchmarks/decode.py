"""What decoding costs: CPU time of some uniform frames of H.264 clips, against other ways to get them.

    python benchmarks/decode.py --media ../shared/clips/ok

Every way gives the same frames as RGB arrays, opens the file anew each time, and uses one thread. Times are CPU time of
the process (threads included), the median of several; what other libraries there are is found out. A ratio above 1 is
how many times more CPU than avpipe. avpipe's frames are upright and have square pixels; some of the others' have not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np

from avpipe.extract import media, sampling
from avpipe.extract.media import AudioRequest

Reader = Callable[[Path, int], object]


def avpipe_frames(path: Path, count: int) -> object:
    return media.read(path, frames={"frames": partial(_uniform, count)}, audio={})


def avpipe_frames_and_sound(path: Path, count: int) -> object:
    sound = AudioRequest(sample_rate=16000)
    return media.read(path, frames={"frames": partial(_uniform, count)}, audio={"sound": sound})


def pyav_everything(path: Path, count: int) -> object:
    """A full decode with the same library; only the wanted frames become RGB."""
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        total = sum(bool(packet.size) for packet in container.demux(stream))
        container.seek(stream.start_time or 0, stream=stream)
        wanted = set(sampling.uniform(np.arange(total) / 25, count).tolist())
        frames = enumerate(container.decode(stream))
        return np.stack([frame.to_ndarray(format="rgb24", threads=1) for number, frame in frames if number in wanted])


def torchcodec(path: Path, count: int, seek_mode: str = "exact") -> object:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), num_ffmpeg_threads=1, dimension_order="NHWC", seek_mode=seek_mode)
    return decoder.get_frames_at(sampling.uniform(np.arange(len(decoder)) / 25, count).tolist()).data


def decord(path: Path, count: int) -> object:
    from decord import VideoReader, cpu

    reader = VideoReader(str(path), ctx=cpu(0), num_threads=1)
    return reader.get_batch(sampling.uniform(np.arange(len(reader)) / 25, count)).asnumpy()


def opencv(path: Path, count: int) -> object:
    import cv2

    cv2.setNumThreads(1)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    wanted = set(sampling.uniform(np.arange(total) / 25, count).tolist())
    frames = []
    for number in range(total):
        capture.grab()
        if number in wanted:
            frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    return np.stack(frames)


def rivals() -> dict[str, Reader]:
    """The other ways that this machine has."""
    found: dict[str, Reader] = {"PyAV, everything": pyav_everything}
    if find_spec("torchcodec"):
        found["torchcodec, exact"] = torchcodec
        found["torchcodec, approximate"] = partial(torchcodec, seek_mode="approximate")
    if find_spec("decord"):
        found["decord"] = decord
    if find_spec("cv2"):
        found["OpenCV"] = opencv
    return found


def measure(readers: Mapping[str, Reader], path: Path, count: int, repeats: int) -> dict[str, float]:
    """Median CPU seconds of each way. They take turns, so that all meet the same weather."""
    times: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(repeats):
        for name, reader in readers.items():
            begin = time.process_time()
            reader(path, count)
            times[name].append(time.process_time() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def is_h264(path: Path) -> bool:
    """Whether the best video stream of a file is H.264, of some size and some seconds."""
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            stream = container.streams.best("video")
            if stream is None or stream.codec_context.name != "h264":
                return False
            return stream.codec_context.height >= 64 and (container.duration or 0) >= 2 * av.time_base
    except av.FFmpegError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=Path, required=True, help="folder with video files")
    parser.add_argument("--frames", type=int, default=16, help="how many frames a clip (default: 16)")
    parser.add_argument("--repeats", type=int, default=7, help="median of how many (default: 7)")
    arguments = parser.parse_args()

    paths = [path for path in sorted(arguments.media.iterdir()) if path.is_file() and is_h264(path)]
    if not paths:
        parser.error(f"no H.264 file of more than 2 s in {arguments.media}")
    readers: dict[str, Reader] = {"avpipe": avpipe_frames, "avpipe + sound": avpipe_frames_and_sound, **rivals()}
    print(f"{arguments.frames} frames of each clip; CPU time, ratios to avpipe\n")
    print(f"{'clip':32}{'avpipe':>10}" + "".join(f"{name:>25}" for name in list(readers)[1:]))
    rows = []
    for path in paths:
        times = measure(readers, path, arguments.frames, arguments.repeats)
        ratios = [times[name] / times["avpipe"] for name in list(readers)[1:]]
        rows.append((times["avpipe"], ratios))
        line = "".join(f"{ratio:>24.2f}x" for ratio in ratios)
        print(f"{path.name[:30]:32}{times['avpipe'] * 1000:>7.1f} ms{line}", flush=True)
    total = sum(own for own, _ in rows)
    overall = [sum(own * ratios[way] for own, ratios in rows) / total for way in range(len(readers) - 1)]
    print(f"{'all, by time':32}{total * 1000:>7.1f} ms" + "".join(f"{ratio:>24.2f}x" for ratio in overall))
    means = [statistics.geometric_mean(ratios[way] for _, ratios in rows) for way in range(len(readers) - 1)]
    print(f"{'all, geometric mean':32}{'':>10}" + "".join(f"{ratio:>24.2f}x" for ratio in means))


def _uniform(count: int, seconds: np.ndarray) -> np.ndarray:
    return sampling.uniform(seconds, count)


if __name__ == "__main__":
    main()
