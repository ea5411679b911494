"""Public weights for the Q-Former: BLIP-2's, in LAVIS's layout or the Hub's, and BERT's.

What comes from where, with v the video stream (the authors' ``load_from_pretrained_from_unimodal``)::

    ours                              LAVIS, below Qformer.bert.               the Hub, below qformer.
    query_norm                        embeddings.LayerNorm                     layernorm
    layers.i.self_attention           encoder.layer.i.attention                encoder.layer.i.attention
    layers.i.cross_attentions.v       encoder.layer.i.crossattention           encoder.layer.i.crossattention
    layers.i.feed_forwards.v          ... .intermediate_query, .output_query   the same

    queries, the rows of v            query_tokens                             query_tokens
    inputs.v.norm                     ln_vision                                vision_model.post_layernorm
    outputs.v                         t5_proj, opt_proj                        language_projection

BLIP-2 looks at the image in layers 0, 2, 4, ...: a cross-attention of ours in an odd layer is new, as is everything of
the other streams that is not shared. Of a BERT come ``query_norm`` and the self-attentions alone: its feed-forward part
goes to text, of which there is none here. Everything in this table must be in the file, for every layer, and fit; and
nothing of the file that belongs to queries may be left over.

The Hub's network gives LAVIS's numbers (1.8e-15 in float64), with these differences: names, and ``attention.attention``
for ``attention.self``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from avpipe.pipeline.errors import CheckpointError
from avpipe.pipeline.pretrained import Report
from avpipe.train import start_values
from avpipe.train.start_values import Held

LAVIS = ("Qformer.", "query_tokens", "ln_vision.", "t5_proj", "opt_proj.", "vision_proj.")
HUB = ("qformer.", "query_tokens", "vision_model.post_layernorm.", "language_projection.", "vision_projection.")
BERT = ("bert.embeddings.LayerNorm.", "bert.encoder.", "embeddings.LayerNorm.", "encoder.")
STAGE_ONE = ("vision_proj.weight", "vision_projection.weight")
"""What a BLIP-2 has that was not yet joined to a language model, and therefore has no projection to one."""

NOT_SHARED = r"(?!query_norm\.|layers\.\d+\.self_attention\.).+"
"""Names of the fusion that a BERT has nothing for, nor a BLIP-2 where there is no video."""

_SHOWN = 5

_FROM_HUB = (
    (r"^qformer\.layernorm\.", "Qformer.bert.embeddings.LayerNorm."),
    (r"^qformer\.", "Qformer.bert."),
    (r"^vision_model\.post_layernorm\.", "ln_vision."),
    (r"^language_projection\.", "t5_proj."),
    (r"attention\.attention\.", "attention.self."),
)
_FROM_BERT = (
    (r"^(bert\.)?", "Qformer.bert."),
    (r"\.gamma$", ".weight"),  # so TensorFlow named them, and the file on the Hub still does
    (r"\.beta$", ".bias"),
)
_IN_A_UNIT = (
    (r"^self\.(query|key|value)\.", r"\1."),
    (r"^(output\.)?dense\.", "out."),
    (r"^(output\.)?LayerNorm\.", "norm."),
)
_OF_TEXT = re.compile(
    r"Qformer(_aud)?\.("
    r"cls\..+|bert\.(pooler\..+|embeddings\.(position_ids|(word|position|token_type)_embeddings\..+)|"
    r"encoder\.layer\.\d+\.(intermediate|output)\..+))"
)
_IN_A_LAYER = re.compile(
    r"(?P<layer>encoder\.layer\.\d+)\.(?P<unit>attention|crossattention|intermediate_query|output_query)"
    r"(_(?P<stream>vis|aud))?\.(?P<rest>.+)"
)


def our_name(name: str, *, video: int = 0, audio: int = 1, is_separate: bool = False) -> str:
    """A name of LAVIS's, or of the authors', as the fusion has it; one that it has no counterpart for, as it is.

    Args:
        name: the official one.
        video: index of the video stream.
        audio: index of the audio stream.
        is_separate: whether each stream has self-attentions and a norm of its queries of its own.
    """
    plain = {"query_tokens": "queries", "query_tokens_aud": "queries_aud"}
    prefixes = {
        "ln_vision.": f"inputs.{video}.norm.",
        "ln_audio.": f"inputs.{audio}.norm.",
        "t5_proj.": f"outputs.{video}.",
        "opt_proj.": f"outputs.{video}.",
        "t5_proj_aud.": f"outputs.{audio}.",
    }
    if name in plain:
        return plain[name]
    for prefix, ours in prefixes.items():
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    inner = re.fullmatch(r"Qformer(?P<second>_aud)?\.bert\.(?P<rest>.+)", name)
    if inner is None:
        return name
    stream = audio if inner["second"] else video
    own = f"{stream}." if is_separate else ""
    norm = inner["rest"].removeprefix("embeddings.LayerNorm.")
    if norm != inner["rest"]:
        return f"query_norm.{own}{norm}"
    found = _IN_A_LAYER.fullmatch(inner["rest"])
    if found is None:
        return name
    if found["stream"]:
        stream = {"vis": video, "aud": audio}[found["stream"]]
    layer, unit, rest = found["layer"].replace("encoder.layer", "layers"), found["unit"], found["rest"]
    if unit == "intermediate_query":
        return f"{layer}.feed_forwards.{stream}.wide.{rest.removeprefix('dense.')}"
    for pattern, replacement in _IN_A_UNIT:
        rest = re.sub(pattern, replacement, rest)
    if unit == "output_query":
        return f"{layer}.feed_forwards.{stream}.{rest}"
    return f"{layer}.self_attention.{own}{rest}" if unit == "attention" else f"{layer}.cross_attentions.{stream}.{rest}"


def renamed(state: Mapping[str, Tensor], *, is_separate: bool = False) -> dict[str, Tensor]:
    """Official weights of video and audio under the fusion's names, without what belongs to text."""
    return {
        our_name(name, is_separate=is_separate): tensor
        for name, tensor in state.items()
        if not _OF_TEXT.fullmatch(name)
    }


def blip2(place: str) -> Held:
    """A BLIP-2; names of its tensors are LAVIS's."""
    held = start_values.read(place, component="fusion", option="initialise_from", prefixes=(*LAVIS, *HUB))
    if any(name.startswith("qformer.") for name in held.tensors):
        return _called(held, _FROM_HUB)
    if not any(name.startswith("Qformer.") for name in held.tensors):
        raise CheckpointError(
            f"{held.path}: expected a BLIP-2, with names Qformer.* (LAVIS's) or qformer.* (the Hub's), and found "
            "none. A BERT goes to fusion.initialise_from_bert"
        )
    return held


def bert(place: str) -> Held:
    """A BERT; names of its tensors are LAVIS's."""
    found = start_values.read(place, component="fusion", option="initialise_from_bert", prefixes=BERT)
    held = _called(found, _FROM_BERT)
    if not any(".attention.self." in name for name in held.tensors):
        raise CheckpointError(f"{held.path}: expected a BERT, with names bert.encoder.*, and found none")
    return held


def _called(held: Held, rules: Iterable[tuple[str, str]]) -> Held:
    """The same tensors by other names."""
    return replace(held, tensors={_replaced(name, rules): tensor for name, tensor in held.tensors.items()})


def fill(
    source: Held,
    own: Mapping[str, Tensor],
    streams: Sequence[int],
    *,
    is_separate: bool,
    copied: Iterable[int] = (),
    ignored: str,
) -> Report:
    """Copy what a source has for the fusion, and see that it is complete.

    Args:
        source: of weights.
        own: the fusion's tensors, to be written to; of ``queries``, the rows that the source is for.
        streams: that the source is for; the first one's alone is video's. Without ``is_separate`` there is one.
        is_separate: as in :func:`our_name`.
        copied: streams to which the feed-forward parts go as well.
        ignored: pattern of the fusion's names that are not wanted, whether the source has them or not.

    Raises:
        CheckpointError: something is missing, of another shape, or left over.
    """
    wanted = _wanted(own, streams, is_separate=is_separate, ignored=ignored)
    given: dict[str, Tensor] = {}
    left_over, strange = [], []
    for name, tensor in source.tensors.items():
        targets = [our_name(name, video=stream, audio=-1, is_separate=is_separate) for stream in streams]
        if targets[0] in wanted:
            given |= dict.fromkeys(targets, tensor)
        elif _OF_TEXT.fullmatch(name) or name.startswith("vision_proj") or re.fullmatch(ignored, targets[0]):
            left_over.append(name)
        else:
            strange.append(name)
    for stream in copied:
        for name in [name for name in given if f".feed_forwards.{streams[0]}." in name]:
            given[name.replace(f".feed_forwards.{streams[0]}.", f".feed_forwards.{stream}.")] = given[name]
    missing = sorted(wanted - given.keys())
    shapes = [
        f"{name} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)}"
        for name, tensor in given.items()
        if tensor.shape != own[name].shape
    ]
    faults = [
        f"{len(found)} {what}: {', '.join(found[:_SHOWN])}{' ...' * (len(found) > _SHOWN)}"
        for what, found in (("missing", missing), ("of another shape", shapes), ("left over", sorted(strange)))
        if found
    ]
    if faults:
        raise CheckpointError(f"{source.path} does not fit the fusion{_sizes(source.tensors)}: {'; '.join(faults)}")
    with torch.no_grad():
        for name, tensor in given.items():
            own[name].copy_(tensor)
    new = own.keys() - given.keys()
    return Report(matched=tuple(sorted(given)), new=tuple(sorted(new)), left_over=tuple(sorted(left_over)))


def tensors_of(fusion: nn.Module, rows: slice) -> dict[str, Tensor]:
    """A fusion's tensors by name, to be written to; ``queries`` stands for some of its rows."""
    own: dict[str, Tensor] = dict(fusion.named_parameters())
    every = own["queries"].detach()
    own["queries"] = every[:, rows]
    if own["queries"].shape != every.shape:
        own["queries (other rows)"] = every  # a name for reports: nothing is written to it
    return own


def _wanted(own: Mapping[str, Tensor], streams: Sequence[int], *, is_separate: bool, ignored: str) -> set[str]:
    """The fusion's names that a source must have."""
    stream = "|".join(map(str, streams))
    shared = rf"({stream})\." if is_separate else ""
    patterns = "|".join(
        (
            rf"query_norm\.{shared}.+",
            rf"layers\.\d+\.self_attention\.{shared}.+",
            rf"layers\.\d*[02468]\.cross_attentions\.({stream})\..+",
            rf"layers\.\d+\.feed_forwards\.({stream})\..+",
            rf"inputs\.({stream})\.norm\..+",
            rf"outputs\.({stream})\..+",
            "queries",
        )
    )
    return {name for name in own if re.fullmatch(patterns, name) and not re.fullmatch(ignored, name)}


def _sizes(held: Mapping[str, Tensor]) -> str:
    """The settings that weights under LAVIS's names ask for, as far as they tell."""
    sizes: dict[str, int] = {}
    layers = [int(found[1]) for name in held if (found := re.match(r"Qformer\.bert\.encoder\.layer\.(\d+)\.", name))]
    if layers:
        sizes["layers"] = max(layers) + 1
    for key, name, axis in (
        ("width", "Qformer.bert.embeddings.LayerNorm.weight", 0),
        ("feed_forward", "Qformer.bert.encoder.layer.0.intermediate_query.dense.weight", 0),
        ("queries.video", "query_tokens", 1),
        ("out_width (if any)", "t5_proj.weight", 0),
        ("out_width (if any)", "opt_proj.weight", 0),
        ("channels of the video features", "ln_vision.weight", 0),
    ):
        if name in held and held[name].ndim > axis:
            sizes[key] = held[name].shape[axis]
    told = ", ".join(f"{key} {size}" for key, size in sizes.items())
    return f" (it has {told}; and it looks at the image in every second layer)" if told else ""


def _replaced(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
