"""Clips written as media files: H.264 and AAC in MP4, through PyAV."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from avpipe.data_manifests.dataset import Progress
from avpipe.data_manifests.synthesis.facts import Facts
from avpipe.data_manifests.synthesis.pictures import draw_frames
from avpipe.data_manifests.synthesis.sounds import play_samples
from avpipe.pipeline.files import atomic_write, leftovers, storage_errors

SAMPLE_RATE = 16_000
AUDIO_BIT_RATE = 48_000
X264 = {"preset": "veryfast", "crf": "20", "threads": "1", "x264-params": "mbtree=0"}
"""One thread, so that the bytes do not depend on the number of cores; no macroblock trees, whose bits depend on what a
process encoded before."""

_CHUNK = 16
"""Files that a process renders before it reports."""


@dataclass(frozen=True, slots=True)
class Format:
    """How clips are rendered: height and width in pixels, frames a second, length."""

    size: int
    fps: int
    seconds: float


def encode(facts: Facts, form: Format) -> bytes:
    """One clip as the bytes of an MP4 file. The same facts give the same bytes."""
    import av

    frames = draw_frames(facts.picture, size=form.size, fps=form.fps, seconds=form.seconds)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=form.fps, options=X264)
        video.width = video.height = form.size
        video.pix_fmt = "yuv420p"
        audio = None
        if facts.sound.has_track:
            audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", options={"aac_coder": "fast"})
            audio.bit_rate = AUDIO_BIT_RATE
        for number, data in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(data, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, form.fps)
            container.mux(video.encode(picture))
        container.mux(video.encode())
        if audio is not None:
            samples = play_samples(facts.sound, sample_rate=SAMPLE_RATE, seconds=form.seconds)
            sound = av.AudioFrame.from_ndarray(samples[np.newaxis], format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
            container.mux(audio.encode(sound))
            container.mux(audio.encode())
    return buffer.getvalue()


def render(clips: Mapping[Path, Facts], form: Format, processes: int, progress: Progress | None = None) -> int:
    """Write the files that are not there yet, in parallel.

    A file takes its name when it is whole, so its name is its completion mark: a run that was killed goes on where it
    stopped.

    Args:
        clips: what each file shall show, by its path.
        form: how.
        processes: how many work at once.
        progress: told how many files are there, of all.

    Returns:
        How many files were written.

    Raises:
        StoreError: a file cannot be written.
    """
    for folder in {path.parent for path in clips}:
        with storage_errors(folder, "remove what a killed run left in"):
            for leftover in leftovers(folder):
                leftover.unlink(missing_ok=True)
    todo = [(path, facts) for path, facts in clips.items() if not path.exists()]
    chunks = [todo[start : start + _CHUNK] for start in range(0, len(todo), _CHUNK)]
    done = len(clips) - len(todo)
    report = progress or (lambda done, total: None)
    report(done, len(clips))
    if processes == 1 or len(chunks) <= 1:
        for chunk in chunks:
            done += _render_chunk(chunk, form)
            report(done, len(clips))
        return len(todo)
    # Fresh processes: forking one that has threads (a progress bar, torch) may deadlock.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_follow_parent)
    try:
        for future in as_completed([pool.submit(_render_chunk, chunk, form) for chunk in chunks]):
            done += future.result()
            report(done, len(clips))
    finally:
        pool.shutdown(cancel_futures=True)
    return len(todo)


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent process, and end when it ends: a pool's workers would wait for it for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _render_chunk(chunk: list[tuple[Path, Facts]], form: Format) -> int:
    for path, facts in chunk:
        data = encode(facts, form)
        with atomic_write(path) as aside:
            aside.write_bytes(data)
    return len(chunk)
