"""What an encoder is: the one interface between decoding and networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from avpipe.extract.media import AudioRequest, FrameRequest, Media, TextRequest
from avpipe.pipeline.config import Config
from avpipe.pipeline.features import Encoded, FeatureSpec

Prepared = Mapping[str, npt.NDArray[np.generic]]
"""What :meth:`Encoder.prepare` hands to :meth:`Encoder.encode`: named arrays, so that it can cross a process border
cheaply."""

Request = FrameRequest | AudioRequest | TextRequest
"""What an encoder looks at, listens to or reads."""


class Encoder(Protocol):
    """A frozen encoder. Its module in ``encoders/`` holds two names: ``Config`` and ``Encoder``.

    Life of an encoder: built in the main process to know its :attr:`spec`; built again (it pickles) in every decoding
    process, where only :meth:`prepare` runs and no weights are loaded; built in the worker that owns the device, where
    :meth:`load` and :meth:`encode` run. An encoder that reads text is never decoded for: its :meth:`prepare` runs in
    the worker too.

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

    @property
    def request(self) -> Request:
        """What it wants of a clip; it lies in the :class:`Media` under the name of its feature set."""

    def prepare(self, media: Media) -> Prepared:
        """The official preprocessing of one clip, on the CPU, in a decoding process.

        Raises:
            SkipClip: the clip lacks the modality (``"no_video"``, ``"no_audio"``).
            ClipError: the clip cannot be used.
        """

    def load(self, device: str) -> None:
        """Read the weights and bring them onto ``device`` (``"cpu"``, ``"cuda:0"``). Called again with another device,
        it brings them there.
        """

    def encode(self, batch: Sequence[Prepared]) -> Sequence[Encoded]:
        """Encode several clips at once, in the order given: float32 :class:`Features` each, or :class:`Segments`.

        May be called by two threads at once.
        """
