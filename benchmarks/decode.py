"""What decoding costs: CPU time of some uniform frames of H.264 clips, against other ways to get them.

    python benchmarks/decode.py --media ../shared/clips/ok

Every way opens the file anew each time, uses one thread, and gives the frames as RGB arrays. Times are CPU time of
this process and of the children it waited for, the median of several; the ways take turns. A ratio above 1 is how many
times more CPU than avpipe. What other libraries there are is found out; torchcodec, which brings no FFmpeg, is lent
PyAV's, so that both decode with the same code.

avpipe's frames are upright, have square pixels, and are of the best video stream. A star marks a way that gives
pictures of another size, or of another stream, and so did other work.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np

from avpipe.extract import media, sampling
from avpipe.extract.media import AudioRequest

Reader = Callable[[Path, int], Any]

OWN, SOUND = "avpipe", "avpipe + sound"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
LENT = "AVPIPE_BENCHMARK_LIBRARIES"
MOST_DIFFERENCE = 4.0  # of the mean over all pixels: colours are converted in more than one way


def avpipe_frames(path: Path, count: int) -> Any:
    return media.read(path, frames={"frames": partial(_uniform, count)}, audio={}).frames["frames"].data


def avpipe_frames_and_sound(path: Path, count: int) -> Any:
    sound = AudioRequest(sample_rate=16000)
    clip = media.read(path, frames={"frames": partial(_uniform, count)}, audio={"sound": sound})
    return clip.frames["frames"].data


def pyav_everything(path: Path, count: int) -> Any:
    """A full decode with the same library; only the wanted frames become RGB."""
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        total = sum(bool(packet.size) for packet in container.demux(stream))
        container.seek(stream.start_time or 0, stream=stream)
        wanted = set(_indices(total, count))
        frames = enumerate(container.decode(stream))
        return np.stack([frame.to_ndarray(format="rgb24", threads=1) for number, frame in frames if number in wanted])


def torchcodec(path: Path, count: int, seek_mode: str = "exact") -> Any:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), num_ffmpeg_threads=1, dimension_order="NHWC", seek_mode=seek_mode)
    return decoder.get_frames_at(_indices(len(decoder), count)).data


def decord(path: Path, count: int) -> Any:
    from decord import VideoReader, cpu

    reader = VideoReader(str(path), ctx=cpu(0), num_threads=1)
    return reader.get_batch(_indices(len(reader), count)).asnumpy()


def opencv(path: Path, count: int) -> Any:
    import cv2

    cv2.setNumThreads(1)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    wanted = set(_indices(total, count))
    frames = []
    for number in range(total):
        capture.grab()
        if number in wanted:
            frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    return np.stack(frames)


def ffmpeg_pipe(path: Path, count: int) -> Any:
    """FFmpeg's program as a child process. How many frames there are, and how large, it is told for nothing."""
    from imageio_ffmpeg import get_ffmpeg_exe

    total, width, height = _shape(path)
    chosen = "+".join(f"eq(n,{number})" for number in _indices(total, count))
    command = [get_ffmpeg_exe(), "-v", "error", "-nostdin", "-threads", "1", "-filter_threads", "1", "-i", str(path)]
    command += ["-an", "-sn", "-dn", "-vf", f"select='{chosen}'", "-fps_mode", "passthrough", "-threads", "1"]
    raw = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], stdout=subprocess.PIPE, check=True)
    return np.frombuffer(raw.stdout, np.uint8).reshape(-1, height, width, 3)


def rivals() -> dict[str, Reader]:
    """The other ways that this machine has."""
    found: dict[str, Reader] = {"PyAV, everything": pyav_everything}
    if find_spec("torchcodec"):
        found["torchcodec, exact"] = torchcodec
        found["torchcodec, approx."] = partial(torchcodec, seek_mode="approximate")
    if find_spec("decord"):
        found["decord"] = decord
    if find_spec("cv2"):
        found["OpenCV"] = opencv
    if find_spec("imageio_ffmpeg"):
        found["ffmpeg pipe"] = ffmpeg_pipe
    return found


def cpu_seconds() -> float:
    """Of this process and of the children it waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(readers: Mapping[str, Reader], path: Path, count: int, repeats: int) -> dict[str, float]:
    """Median CPU seconds of each way. They take turns, each time beginning with another: all meet the same weather."""
    times: dict[str, list[float]] = {name: [] for name in readers}
    names = list(readers)
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            begin = cpu_seconds()
            readers[name](path, count)
            times[name].append(cpu_seconds() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def same_pictures(readers: Mapping[str, Reader], path: Path, count: int) -> dict[str, bool]:
    """Which ways give what avpipe gives, as far as the eye can tell. Also what loads the libraries, unmeasured."""
    own = readers[OWN](path, count).astype(np.float32)
    others = {name: np.asarray(reader(path, count)) for name, reader in readers.items()}
    return {
        name: other.shape == own.shape and float(np.abs(other - own).mean()) <= MOST_DIFFERENCE
        for name, other in others.items()
    }


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


def machine() -> dict[str, Any]:
    """Where and with what this is measured."""
    packages = ("avpipe", "av", "numpy", "torch", "torchcodec", "decord", "opencv-python-headless", "imageio-ffmpeg")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    if find_spec("imageio_ffmpeg"):
        from imageio_ffmpeg import get_ffmpeg_version

        versions["ffmpeg"] = get_ffmpeg_version()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "libavcodec": media.libraries()["libavcodec"],
        "versions": versions,
    }


def summary(clips: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Ratios over all clips: of the summed times, and the geometric mean of each clip's own."""
    return {
        name: {
            "summed": sum(times[name] for times in clips.values()) / sum(times[OWN] for times in clips.values()),
            "geometric_mean": statistics.geometric_mean(times[name] / times[OWN] for times in clips.values()),
        }
        for name in names
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=Path, required=True, help="folder with video files")
    parser.add_argument("--frames", type=int, default=16, help="how many frames a clip (default: 16)")
    parser.add_argument("--repeats", type=int, default=9, help="median of how many (default: 9)")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    arguments = parser.parse_args()

    paths = [path for path in sorted(arguments.media.iterdir()) if path.is_file() and is_h264(path)]
    if not paths:
        parser.error(f"no H.264 file of more than 2 s in {arguments.media}")
    readers: dict[str, Reader] = {OWN: avpipe_frames, SOUND: avpipe_frames_and_sound, **rivals()}
    names = list(readers)
    about = {**machine(), "frames": arguments.frames, "repeats": arguments.repeats, "load_before": os.getloadavg()}
    print("\n".join(f"{key}: {value}" for key, value in about.items()))
    print(f"\n{'clip':28}{OWN:>12}" + "".join(f"{name:>21}" for name in names[1:]))
    clips: dict[str, dict[str, float]] = {}
    same: dict[str, dict[str, bool]] = {}
    for path in paths:
        same[path.name] = same_pictures(readers, path, arguments.frames)
        times = clips[path.name] = measure(readers, path, arguments.frames, arguments.repeats)
        cells = (f"{times[name] / times[OWN]:.2f}{' ' if same[path.name][name] else '*'}" for name in names[1:])
        print(f"{path.name[:26]:28}{times[OWN] * 1000:>9.1f} ms" + "".join(f"{cell:>21}" for cell in cells), flush=True)
    overall = summary(clips, names)
    total = sum(times[OWN] for times in clips.values())
    for label, kind in (("summed over all", "summed"), ("geometric mean", "geometric_mean")):
        own = f"{total * 1000:.1f} ms" if kind == "summed" else ""
        print(f"{label:28}{own:>12}" + "".join(f"{overall[name][kind]:>20.2f} " for name in names[1:]))
    about["load_after"] = os.getloadavg()
    print(f"\nload_after: {about['load_after']}")
    if arguments.json:
        everything = {**about, "seconds": clips, "is_same": same, "ratios": overall}
        arguments.json.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")


def start_over() -> None:
    """Start this program once more: what is set here is read when libraries are loaded."""
    libraries = Path(av.__file__).parent.parent / "av.libs"
    lent = Path(tempfile.mkdtemp(prefix="avpipe-libraries-"))
    for name, (major, *_) in av.library_versions.items():
        for file in libraries.glob(f"{name}-*.so.{major}.*"):
            (lent / f"{name}.so.{major}").symlink_to(file)
    search = [str(lent), str(libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    os.environ.update({**ONE_THREAD, LENT: str(lent), "LD_LIBRARY_PATH": ":".join(search)})
    os.execv(sys.executable, [sys.executable, *sys.argv])


@cache
def _shape(path: Path) -> tuple[int, int, int]:
    """How many frames, their width and height, upright."""
    data = pyav_everything(path, 1)
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        total = sum(bool(packet.size) for packet in container.demux(stream))
        container.seek(stream.start_time or 0, stream=stream)
        is_turned = next(container.decode(stream)).rotation % 180 != 0
    height, width = data.shape[1:3]
    return (total, height, width) if is_turned else (total, width, height)


def _indices(total: int, count: int) -> list[int]:
    chosen: list[int] = _uniform(count, np.arange(total) / 25).tolist()
    return chosen


def _uniform(count: int, seconds: np.ndarray) -> np.ndarray:
    return sampling.uniform(seconds, count)


if __name__ == "__main__":
    if LENT not in os.environ:
        start_over()
    atexit.register(shutil.rmtree, os.environ[LENT], ignore_errors=True)
    main()
