"""Image towers of open_clip: which model, which weights, which preprocessing; and their tokens.

Importing this module loads neither open_clip nor torch.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from avpipe.extract.encoders._frames import Preprocessing, patch_rows
from avpipe.extract.encoders._pretrained import network_of
from avpipe.pipeline import weights
from avpipe.pipeline.errors import CheckpointError, UnknownNameError, UsageError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

DEFAULT_MODEL = "ViT-B-16"
HUB_PREFIX = "hf-hub:"
WEIGHT_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
CONFIG_NAME = "open_clip_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """What must be known to build an image tower.

    Attributes:
        label: for messages.
        model: open_clip name; ``None`` where the weights' own configuration describes the model.
        embed_dim: width of the space shared with text.
        vision: open_clip's ``vision_cfg``.
        quick_gelu: activation of open_clip's own transformer; towers from timm have their own.
        preprocessing: of frames.
        weights: for the spec.
        path: of the weights; ``None`` for random ones.
        seed: of random weights.
    """

    label: str
    model: str | None
    embed_dim: int
    vision: Mapping[str, Any]
    quick_gelu: bool
    preprocessing: Preprocessing
    weights: Mapping[str, Any]
    path: Path | None = None
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """For the spec, beside the weights: preprocessing, and what network the tensors are of."""
        described = {"quick_gelu": self.quick_gelu}
        # A model with a name is known by it.
        network = {} if self.model else {"network": network_of({"embed_dim": self.embed_dim, **self.vision})}
        return {**self.preprocessing.to_json(), **described, **network}


def find(model: str | None, wanted: str, name: str) -> Tower:
    """What to build, and from which file.

    Args:
        model: an open_clip name, or ``None`` for what the weights say of themselves, else :data:`DEFAULT_MODEL`.
        wanted: the weights, as configured.
        name: of the feature set, for messages.

    Raises:
        UsageError: the model, the tag or the pair of both is unknown.
        MissingWeightsError: the weights are neither here nor to be had.
    """
    import open_clip

    seed = weights.random_seed(wanted, name)
    if seed is not None:
        return replace(_built_in(model or DEFAULT_MODEL), weights=weights.random_spec(seed), seed=seed)
    if wanted.startswith(HUB_PREFIX):
        return _from_repository(wanted.removeprefix(HUB_PREFIX), model, name)
    # A tag is a tag, also where a folder of that name happens to lie in the working directory.
    is_tag = bool(open_clip.get_pretrained_cfg((model or DEFAULT_MODEL).replace("/", "-"), wanted))
    if not is_tag and weights.looks_local(wanted) and Path(wanted).expanduser().is_dir():
        return _from_repository(wanted, model, name)
    tower = _built_in(model or DEFAULT_MODEL)
    facts = open_clip.get_pretrained_cfg(tower.label, wanted)
    if facts:
        return _from_tag(tower, wanted, facts, name)
    if weights.looks_local(wanted):
        return _from_file(tower, weights.local_file(wanted, component=name), name)
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(tower.label)) or "none"
    raise UsageError(
        f"{name}: model {tower.label} has no pretrained tag {wanted!r}; it has: {tags}. "
        f"Or give a path, {HUB_PREFIX}org/name, or random"
    )


def _built_in(model: str) -> Tower:
    """A model that open_clip knows by name, without weights yet; preprocessing as most of its tags have it."""
    import open_clip

    if model not in open_clip.list_models():
        hint = f"A repository or a folder is given as weights: weights={HUB_PREFIX}org/name"
        raise UnknownNameError("open_clip model", model, open_clip.list_models(), hint)
    described = open_clip.get_model_config(model)
    tags = open_clip.list_pretrained_tags_by_model(model)
    usual = open_clip.get_pretrained_cfg(model, tags[0]) if tags else {}
    return Tower(
        label=model,
        model=model,
        embed_dim=described["embed_dim"],
        vision=described["vision_cfg"],
        quick_gelu=bool(described.get("quick_gelu")),
        preprocessing=_preprocessing(described["vision_cfg"], usual),
        weights={},
    )


def _from_tag(tower: Tower, tag: str, facts: Mapping[str, Any], name: str) -> Tower:
    """A model with one of open_clip's pretrained tags, which all lie on the Hub."""
    repository, _, file = facts["hf_hub"].rpartition("/")
    names = (str(Path(file).with_suffix(".safetensors")), file) if file else WEIGHT_NAMES
    found = weights.resolve(repository, {"weights": names}, component=name)
    return replace(
        tower,
        label=f"{tower.label} ({tag})",
        quick_gelu=tower.quick_gelu or bool(facts.get("quick_gelu")),
        preprocessing=_preprocessing(tower.vision, facts),
        weights={**found.to_spec(), "id": f"{tower.label}/{tag}"},
        path=found.files["weights"],
    )


def _from_repository(place: str, model: str | None, name: str) -> Tower:
    """A repository on the Hub or a local folder that describes its model itself, as open_clip writes them."""
    found = weights.resolve(place, {"config": (CONFIG_NAME,), "weights": WEIGHT_NAMES}, component=name)
    try:
        described = json.loads(found.files["config"].read_text(encoding="utf-8"))
        architecture = described["model_cfg"]
        vision, embed_dim = architecture["vision_cfg"], architecture["embed_dim"]
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{found.files['config']}: no configuration of an open_clip model ({error!r})") from None
    if model is not None and not _same(_built_in(model).vision, vision):
        raise UsageError(
            f"{name}: {place} holds another model than {model}: {vision}. Write {name}.model=null: the weights' own "
            f"{CONFIG_NAME} says what they are"
        )
    return Tower(
        label=place,
        model=None,
        embed_dim=embed_dim,
        vision=vision,
        quick_gelu=bool(architecture.get("quick_gelu")),
        preprocessing=_preprocessing(vision, described.get("preprocess_cfg", {})),
        weights=found.to_spec(),
        path=found.files["weights"],
    )


def _from_file(tower: Tower, path: Path, name: str) -> Tower:
    """A file that holds a whole open_clip model. What it was trained with, it does not say."""
    import open_clip

    model = tower.label
    known = [open_clip.get_pretrained_cfg(model, tag) for tag in open_clip.list_pretrained_tags_by_model(model)]
    if len({_preprocessing(tower.vision, facts) for facts in known}) > 1:
        raise UsageError(
            f"{name}: weights of {model} come with different preprocessing, and {path.name} does not say with which. "
            f"Put it into a folder beside its {CONFIG_NAME} and give the folder"
        )
    quick_gelu = tower.quick_gelu or _is_torchscript(path)  # TorchScript is how OpenAI's own files are written
    if not quick_gelu and any(facts.get("quick_gelu") for facts in known):
        log.warning(
            "%s: %s is taken to be trained with GELU. If it comes from OpenAI, MetaCLIP or DFN, it was trained with "
            "QuickGELU and the features are wrong: write %s.model=%s-quickgelu",
            name, path.name, name, model,
        )  # fmt: skip
    return replace(
        tower,
        label=f"{model} ({path.name})",
        quick_gelu=quick_gelu,
        weights={"id": path.name, "sha256": weights.sha256_of(path)},
        path=path,
    )


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two ``vision_cfg`` mean the same model, defaults filled in."""
    from open_clip import CLIPVisionCfg

    return bool(CLIPVisionCfg(**one) == CLIPVisionCfg(**other))


def _preprocessing(vision: Mapping[str, Any], facts: Mapping[str, Any]) -> Preprocessing:
    """From a tag's or a repository's facts; open_clip's defaults (OpenAI's) for what they do not say."""
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    size = vision.get("image_size", 224)
    merged = merge_preprocess_dict(PreprocessCfg(), {**facts, "size": size})
    return Preprocessing(
        size=(size, size) if isinstance(size, int) else tuple(size),
        mean=_three(merged["mean"]),
        std=_three(merged["std"]),
        interpolation="bilinear" if merged["interpolation"] == "bilinear" else "bicubic",  # as open_clip reads it
        resize_mode=merged["resize_mode"],
        fill_color=merged["fill_color"],
    )


def _three(values: float | Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (values,) * 3 if isinstance(values, (int, float)) else values
    return float(red), float(green), float(blue)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith("/constants.pkl") for entry in archive.namelist())


def probe(tower: Tower, tokens: str) -> tuple[int, int]:
    """Rows of a frame and their width, found on torch's meta device: no weights, no arithmetic.

    Raises:
        UsageError: the model does not have such tokens; the message says which it has.
    """
    import torch

    with torch.device("meta"):
        visual = _build(tower)
        if tokens == "cls":
            _drop_projection(visual, tower.label)
        frame = torch.empty(1, 3, *tower.preprocessing.size)
        rows = tokens_of(visual, frame, tokens)
    return rows.shape[1], rows.shape[2]


def load(tower: Tower, tokens: str) -> torch.nn.Module:
    """The tower with its weights, on the CPU, in evaluation mode: normalised frames ``(F, 3, H, W)`` ->
    ``(F, rows, dim)``.

    Raises:
        CheckpointError: the file does not fit the model.
    """
    from avpipe.extract.encoders._device import Applied, seeded

    if tower.path is None:
        with seeded(tower.seed):
            visual = _build(tower)
    else:
        visual = _build(tower)
        _fill(visual, tower.path, tower.label)
    if tokens == "cls":
        _drop_projection(visual, tower.label)
    return Applied(visual, partial(tokens_of, tokens=tokens))


def tokens_of(visual: Any, pixels: torch.Tensor, tokens: str) -> torch.Tensor:
    """Normalised frames ``(F, 3, H, W)`` -> ``(F, rows, dim)``."""
    import torch

    if tokens in ("cls", "embedding"):
        given = visual(pixels)
        pooled: torch.Tensor = given[0] if isinstance(given, tuple) else given  # CoCa's tower gives tokens beside it
        return pooled[:, None]
    if getattr(visual, "attn_pool", None) is not None:
        raise UsageError(
            f"tokens: this model pools with queries of its own and has no final norm for its patches: {tokens} is not "
            "to be had. Use tokens=embedding or tokens=cls"
        )
    # Towers from timm must not be asked for CLS and the like if they have none.
    has_prefix = not hasattr(visual, "trunk") or getattr(visual.trunk, "num_prefix_tokens", 0) > 0
    last = visual.forward_intermediates(
        pixels,
        indices=1,
        normalize_intermediates=True,
        intermediates_only=True,
        output_fmt="NCHW",
        output_extra_tokens=has_prefix,
    )
    patches: torch.Tensor = last["image_intermediates"][0]  # (F, dim, rows, columns)
    prefix = last.get("image_intermediates_prefix", [])[:1] if tokens == "all" else []
    return torch.cat([*prefix, patch_rows(patches, tokens)], dim=1)


def _build(tower: Tower) -> torch.nn.Module:
    """The image tower alone, by the function with which open_clip's CLIP, CustomTextCLIP and CoCa build theirs.

    The public ``create_model`` would build the text tower as well, some of which need files from the Hub.
    """
    from open_clip.model import _build_vision_tower

    vision = {**tower.vision, "timm_model_pretrained": False}
    visual: torch.nn.Module = _build_vision_tower(tower.embed_dim, vision, tower.quick_gelu)
    return visual.eval()


def _drop_projection(visual: torch.nn.Module, label: str) -> None:
    """Leave out the projection into the space shared with text."""
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer
    from torch import nn

    if isinstance(visual, VisionTransformer):
        visual.proj = None
    elif isinstance(visual, TimmModel) and "pool" not in dict(visual.head.named_children()):
        visual.trunk.reset_classifier(0)
        visual.head = nn.Identity()
    else:
        raise UsageError(f"tokens: {label} pools and projects in one layer: it has no 'cls'. Use tokens=embedding")


def _fill(visual: torch.nn.Module, path: Path, label: str) -> None:
    """Read the image tower's part of a whole open_clip model; every tensor must be there and fit."""
    prefix = "visual."
    state = {key.removeprefix(prefix): value for key, value in _read(path).items() if key.startswith(prefix)}
    if not state:
        raise CheckpointError(f"{path}: holds no tensor {prefix}*: not an open_clip model")
    try:
        visual.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit {label}: {error}") from None


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    import torch
    from open_clip.factory import load_state_dict
    from safetensors import SafetensorError

    try:
        if _is_torchscript(path):
            script: torch.nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
            return script.state_dict()
        state: Mapping[str, torch.Tensor] = load_state_dict(str(path))
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise CheckpointError(f"{path}: cannot be read as weights: {error}") from None
    return state
