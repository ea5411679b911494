"""What an encoder is: the one interface between decoding and networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from avpipe.extract.media import AudioRequest, Media
from avpipe.pipeline.config import Config
from avpipe.pipeline.features import Features, FeatureSpec

Prepared = Mapping[str, npt.NDArray[np.generic]]
"""What :meth:`Encoder.prepare` hands to :meth:`Encoder.encode`: named arrays, so that it can cross a process border
cheaply."""


class Encoder(Protocol):
    """A frozen encoder. Its module in ``encoders/`` holds two names: ``Config`` and ``Encoder``.

    Life of an encoder: built in the main process to know its :attr:`spec`; built again (it pickles) in every decoding
    process, where only :meth:`sample` and :meth:`prepare` run and no weights are loaded; built in the worker that owns
    the device, where :meth:`load` and :meth:`encode` run.

    Attributes:
        spec: the identity of what it gives.
        batch_size: how many clips :meth:`encode` takes at once.
    """

    spec: FeatureSpec
    batch_size: int

    def __init__(self, config: Config, name: str) -> None:
        """Cheap: reads no weights into memory, but finds them.

        Args:
            config: the module's ``Config``.
            name: of the feature set.

        Raises:
            MissingWeightsError: the weights are neither here nor to be had; the message says how to get them.
        """

    def sample(self, frame_pts_seconds: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Which frames of a clip it wants.

        Args:
            frame_pts_seconds: ``(N,)``, N >= 1: the time of every frame of the clip from the clip's start, ascending.

        Returns:
            Indices into them, ascending; may repeat one where the clip is short. Audio encoders return none.
        """

    @property
    def audio(self) -> AudioRequest | None:
        """The waveform it wants; ``None`` for a visual encoder."""

    def prepare(self, media: Media) -> Prepared:
        """The official preprocessing of one clip, on the CPU, in a decoding process.

        Raises:
            SkipClip: the clip lacks the modality (``"no_video"``, ``"no_audio"``).
            ClipError: the clip cannot be used.
        """

    def load(self, device: str) -> None:
        """Read the weights onto ``device`` (``"cpu"``, ``"cuda:0"``)."""

    def encode(self, batch: Sequence[Prepared]) -> list[Features]:
        """Encode several clips at once; one :class:`Features` each, float32, in the order given."""
