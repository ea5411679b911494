"""CLIPScore and RefCLIPScore: how near a caption is to what is to be seen, as CLIP has learnt it.

Paper: Hessel, Holtzman, Forbes, Le Bras and Choi, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning",
EMNLP 2021; for video Shi, Yang, Xu, Yuan, Li, Hu and Zha, "EMScore: Evaluating Video Captioning via Coarse-Grained and
Fine-Grained Embedding Matching", CVPR 2022, whose coarse-grained vector of a video this takes.
Author's code: jmhessel/clipscore ``clipscore.py``; ShiYaya/emscore.

Of a caption c, references r and frames f; e: CLIP's vectors, of length 1, of text behind "A photo depicts "::

    v            = mean over f of e(f), brought to length 1
    CLIPScore    = 2.5 * max(e(c) . v, 0)
    RefCLIPScore = harmonic mean of CLIPScore and max(max over r of e(c) . e(r), 0)

The frames are those of the feature set that is given (``Tools.pictures``): embeddings that the encoder ``clip_vit``
made with ``tokens: embedding``. The text is read by the same CLIP, and its weights must have the same sha256. The
captions are read as they were written, not as PTB words, as there.

Deviations: the author's code knows pictures, not videos. Averaging the CLIPScore of each frame instead multiplies a
clip's score by the length of the mean of its frames' vectors, the less the more the frames differ. The paper's numbers
are of ViT-B/32; the signature tells which CLIP made these. What sounds, no CLIP sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from avpipe.eval.evaluation import Evaluation, TokenisedReferences
from avpipe.eval.metric import MetricResult
from avpipe.pipeline.errors import ScoringError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from avpipe.eval.networks import TextTower

NAMES = ("CLIPScore", "RefCLIPScore")
VERSION = "w:2.5"  # the weights and the frames are told by the result

PROMPT = "A photo depicts "
WEIGHT = 2.5


def compute(evaluation: Evaluation) -> MetricResult:
    """See :mod:`avpipe.eval.metric`.

    Raises:
        ScoringError: there are no pictures, or not of all clips, or they are no embeddings of a CLIP.
        MissingWeightsError: the CLIP's weights are neither here nor to be had.
        CheckpointError: they are others than those that saw the pictures.
    """
    import numpy as np

    pictures = evaluation.tools.pictures
    if pictures is None:
        raise ScoringError(
            "there are no pictures to hold captions against: it wants features in the space that a CLIP shares with "
            "text. Try: avpipe extract -d DATASET -e clip_vit clip_vit.tokens=embedding clip_vit.model=ViT-B-32"
        )
    absent = [clip_id for clip_id in evaluation.captions if clip_id not in pictures]
    if absent:
        raise ScoringError(
            f"feature set {pictures.spec.name!r} has no pictures of {len(absent)} of {len(evaluation.captions)} clips: "
            f"{', '.join(absent[:10])}"
        )
    tower = evaluation.tools.networks.text_tower(pictures.spec)
    own = tower([PROMPT + caption for caption in evaluation.captions.values()])
    theirs = evaluation.references.once(_Reading(tower))
    seen, both = {}, {}
    for clip_id, vector in zip(evaluation.captions, own, strict=True):
        frames = pictures.read(clip_id).data.astype(np.float64)
        mean = _unit(_unit(frames).mean(axis=0))
        like_pictures = WEIGHT * max(float(vector @ mean), 0)
        like_text = max(float((theirs[clip_id] @ vector).max()), 0)
        total = like_pictures + like_text
        seen[clip_id], both[clip_id] = like_pictures, 2 * like_pictures * like_text / total if total else 0.0
    return MetricResult.of_means(
        {"CLIPScore": seen, "RefCLIPScore": both},
        version=f"{VERSION}|{tower.version}|features:{pictures.spec.fingerprint}",
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    """Vectors of references, ``(references, dim)`` of each clip; remembered by the network that made them."""

    tower: TextTower

    def __call__(self, references: TokenisedReferences) -> dict[str, npt.NDArray[np.float32]]:
        import numpy as np

        captions = references.captions
        rows = iter(self.tower([PROMPT + text for several in captions.values() for text in several]))
        return {clip_id: np.stack([next(rows) for _ in several]) for clip_id, several in captions.items()}


def _unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of length 1, along the last axis; one of length 0 stays."""
    import numpy as np

    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    found: npt.NDArray[np.float64] = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return found
