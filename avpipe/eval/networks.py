"""Networks that judge captions: a sentence encoder, a detector of broken sentences, the text tower of a CLIP.

Their weights are not part of avpipe. Where each is looked for is a setting of :class:`avpipe.eval.tools.Tools`
(``weights``, by the names below) or an environment variable (``AVPIPE_SBERT``, ``AVPIPE_ECHECKER``, ``AVPIPE_CLIP``);
without either, the public place of what the metric's authors used:

``sbert``
    a Sentence-BERT: a folder or a repository on the Hub as sentence-transformers writes them, with mean pooling.
``echecker``
    FENSE's detector: its ``.ckpt`` file, or the name of one of the two public ones, which is then looked for where
    FENSE and aac-metrics keep theirs. What kind of BERT it is, the file says; ``config.json`` and ``tokenizer.json``
    (or ``vocab.txt``) of that BERT may lie beside it, else they come from the Hub or its cache.
``clip``
    the weights that the features of pictures were made with: whatever their spec says, unless they lie elsewhere here.

Importing this module loads no network library.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avpipe.pipeline import weights
from avpipe.pipeline.errors import CheckpointError, MissingWeightsError, ScoringError, UnknownNameError
from avpipe.pipeline.places import cache_folder, is_readable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from avpipe.eval.evaluation import TokenisedReferences
    from avpipe.pipeline.features import FeatureSpec

DEFAULTS = {
    "sbert": "sentence-transformers/paraphrase-TinyBERT-L6-v2",
    "echecker": "echecker_clotho_audiocaps_base",
    "clip": "",
}
"""What the authors of FENSE report with; of a CLIP, what the pictures were seen with."""

ECHECKERS = {
    "echecker_clotho_audiocaps_base": "1a719f090af70614bbdb9f9437530b7e133c48cfa4a58d964de0d47fc974a2fa",
    "echecker_clotho_audiocaps_tiny": "90ed0ac5033ec497ec66d4f68588053813e085671136dae312097c96c504f673",
}
"""sha256 of the public detectors, as their authors give them."""

_RELEASE = "https://github.com/blmoistawinde/fense/releases/download/V0.1"
_TOKENIZERS = ("tokenizer.json", "vocab.txt")
# A part in a folder of its own comes last: the Hub's revision is read from where the one before it lies.
_SBERT_PARTS = {
    "config": ("config.json",),
    "weights": ("model.safetensors", "pytorch_model.bin"),
    "tokenizer": _TOKENIZERS,
    "modules": ("modules.json",),
    "lengths": ("sentence_bert_config.json",),
    "pooling": ("1_Pooling/config.json",),
}
_ECHECKER_TOKENS = 64
_LOCAL_DIR = "local-dir:"
_CLIP_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
_AT_ONCE = 64


class Networks:
    """The networks that metrics ask for, each read when it is first wanted.

    Args:
        places: where to find weights, by the names of :data:`DEFAULTS`; without one, what ``AVPIPE_<NAME>`` says.

    Raises:
        UnknownNameError: no such network.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        for name in places:
            if name not in DEFAULTS:
                raise UnknownNameError("network", name, DEFAULTS)
        self.places = {
            name: places.get(name) or os.environ.get(f"AVPIPE_{name.upper()}") or place
            for name, place in DEFAULTS.items()
        }

    @cached_property
    def sentence_encoder(self) -> SentenceEncoder:
        """See :class:`SentenceEncoder`; also for its errors."""
        return SentenceEncoder(self.places["sbert"])

    @cached_property
    def error_checker(self) -> ErrorChecker:
        """See :class:`ErrorChecker`; also for its errors."""
        return ErrorChecker(self.places["echecker"])

    def text_tower(self, spec: FeatureSpec) -> TextTower:
        """Of the CLIP that made features of pictures, read once; see :class:`TextTower`, also for its errors."""
        if spec.fingerprint not in self._towers:
            self._towers[spec.fingerprint] = TextTower(spec, self.places["clip"])
        return self._towers[spec.fingerprint]

    @cached_property
    def _towers(self) -> dict[str, TextTower]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {"places": self.places}  # networks are read anew where this arrives


class SentenceEncoder:
    """Sentences to vectors of length 1, as sentence-transformers does it for models with mean pooling.

    Args:
        place: a folder, or ``org/name`` on the Hub.

    Attributes:
        version: what the vectors depend on, for signatures: name and sha256 of the weights.

    Raises:
        MissingWeightsError: a file is neither here nor to be had.
        CheckpointError: the files are no such model.
    """

    def __init__(self, place: str) -> None:
        from transformers import AutoModel

        from avpipe.pipeline.pretrained import json_of, read_network

        found = _resolved("sbert", place, _SBERT_PARTS)
        read = [found.files[part] for part in ("weights", "tokenizer", "lengths")]
        self.version = _version("sbert", found.id, *read)
        pooling = json_of(found.files["pooling"])
        modes = [name for name, used in pooling.items() if name.startswith("pooling_mode_") and used]
        if modes != ["pooling_mode_mean_tokens"]:
            raise CheckpointError(
                f"{found.files['pooling']}: expected pooling_mode_mean_tokens alone, got {', '.join(modes) or 'none'}"
            )
        kinds = [kind.rpartition(".")[2] for kind in re.findall(r'"type": *"(.*?)"', _text(found.files["modules"]))]
        if [kind for kind in kinds if kind != "Normalize"] != ["Transformer", "Pooling"]:  # the length becomes 1 anyway
            raise CheckpointError(
                f"{found.files['modules']}: expected the modules Transformer, Pooling and perhaps Normalize, "
                f"got {', '.join(kinds) or 'none'}"
            )
        lengths = json_of(found.files["lengths"])
        self._lower = bool(lengths.get("do_lower_case"))
        config = json_of(found.files["config"])
        longest = lengths.get("max_seq_length") or config.get("max_position_embeddings")  # null: the network's own
        if not isinstance(longest, int) or longest < 1:
            raise CheckpointError(
                f"{found.files['lengths']}: expected max_seq_length, a number of tokens, got {longest!r}"
            )
        self._reader = _Reader(found.files["tokenizer"], longest, filler=config.get("pad_token_id") or 0)
        network, _ = read_network(AutoModel, found.files["weights"], what="a sentence encoder", may_be_new=r"^pooler\.")
        self._network, self._device = _ready(network)

    def __call__(self, sentences: Sequence[str]) -> npt.NDArray[np.float32]:
        """``(sentences, dim)``, each row of length 1."""
        import numpy as np
        import torch

        rows = {sentence: number for number, sentence in enumerate(dict.fromkeys(sentences))}
        texts = [sentence.strip().lower() if self._lower else sentence.strip() for sentence in rows]
        vectors = np.empty((len(rows), self._network.config.hidden_size), np.float32)
        for places, ids, mask in self._reader.batches(texts, self._device):
            with torch.inference_mode():
                hidden = self._network(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, T, dim)
                weight = mask[..., None].to(hidden.dtype)
                mean = (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-9)
                vectors[places] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
        return vectors[[rows[sentence] for sentence in sentences]]

    def read_references(self, references: TokenisedReferences) -> dict[str, npt.NDArray[np.float32]]:
        """Of each clip ``(references, dim)``; for :meth:`avpipe.eval.evaluation.TokenisedReferences.once`."""
        import numpy as np

        rows = iter(self([caption for several in references.captions.values() for caption in several]))
        return {key: np.stack([next(rows) for _ in several]) for key, several in references.captions.items()}


class ErrorChecker:
    """How likely a sentence is broken: cut off, repeated, without a verb ... FENSE's detector.

    A BERT, and a linear layer on its first token with a logistic unit for each kind of fault; the last is for any fault
    at all.

    Args:
        place: a ``.ckpt`` file, or a name of :data:`ECHECKERS`.

    Attributes:
        version: what the probabilities depend on, for signatures: name and sha256 of the weights.

    Raises:
        MissingWeightsError: a file is neither here nor to be had.
        CheckpointError: the file is no such detector.
    """

    def __init__(self, place: str) -> None:
        import torch
        from transformers import BertConfig, BertModel

        from avpipe.pipeline import checkpoints
        from avpipe.pipeline.pretrained import json_of

        path = _find_echecker(place)
        content = checkpoints.read(path)
        kind, classes = content.get("model_type"), content.get("num_classes")
        if not isinstance(kind, str) or not isinstance(classes, int):
            raise CheckpointError(
                f"{path}: expected the keys model_type, num_classes and state_dict of FENSE's detector, "
                f"got {', '.join(map(str, list(content)[:5]))}"
            )
        beside = {"config": path.parent / "config.json"}
        beside["tokenizer"] = next((file for name in _TOKENIZERS if (file := path.parent / name).is_file()), path)
        if not beside["config"].is_file() or beside["tokenizer"] == path:
            kind = f"google-bert/{kind}" if "/" not in kind else kind  # its home on the Hub since 2024
            parts = {"config": ("config.json",), "tokenizer": _TOKENIZERS}
            beside = dict(_resolved("echecker", kind, parts).files)
        bert = BertModel(BertConfig(**json_of(beside["config"])))
        network = torch.nn.ModuleDict({"encoder": bert, "clf": torch.nn.Linear(bert.config.hidden_size, classes)})
        checkpoints.fill(network, checkpoints.tensors(content, path), path, ignored=r".*\.position_ids")
        self._network, self._device = _ready(network)
        self.version = _version("echecker", path.stem, path, beside["tokenizer"])
        self._reader = _Reader(beside["tokenizer"], _ECHECKER_TOKENS, filler=bert.config.pad_token_id or 0)

    def __call__(self, sentences: Sequence[str]) -> npt.NDArray[np.float32]:
        """``(sentences, kinds of faults)``: probabilities; at last that of any fault."""
        import numpy as np
        import torch

        texts = [re.sub(r"[^\w\s]", "", sentence).lower() for sentence in sentences]
        found = np.empty((len(texts), self._network["clf"].out_features), np.float32)
        for places, ids, mask in self._reader.batches(texts, self._device):
            with torch.inference_mode():
                hidden = self._network["encoder"](input_ids=ids, attention_mask=mask).last_hidden_state
                found[places] = self._network["clf"](hidden[:, 0]).sigmoid().cpu().numpy()
        return found


class TextTower:
    """Sentences to vectors of length 1, in the space that a CLIP shares between pictures and text.

    Args:
        spec: of features that the encoder ``clip_vit`` made with ``tokens: embedding``: which CLIP it was.
        place: where its weights are; empty: where the spec says.

    Attributes:
        version: what the vectors depend on, for signatures: name and sha256 of the weights.

    Raises:
        ScoringError: the features are no such, or were made with random weights.
        MissingWeightsError: the weights are neither here nor to be had.
        CheckpointError: they are others than those that made the features, or cannot be read.
    """

    def __init__(self, spec: FeatureSpec, place: str = "") -> None:
        import open_clip

        said = f"feature set {spec.name!r}"
        if spec.encoder != "clip_vit" or spec.config.get("tokens") != "embedding":
            raise ScoringError(
                f"{said}: expected embeddings that clip_vit made with tokens=embedding, got {spec.encoder} with "
                f"tokens={spec.config.get('tokens')}"
            )
        if str(spec.weights.get("sha256")).startswith("random:"):
            raise ScoringError(f"{said} was made with random weights: it says nothing of what is to be seen")
        model, path = _find_clip(spec, place or str(spec.config.get("weights")))
        if weights.sha256_of(path) != spec.weights.get("sha256"):
            raise CheckpointError(
                f"{path}: expected the weights that made {said}, with sha256 {spec.weights.get('sha256')}, got "
                f"{weights.sha256_of(path)}"
            )
        self.version = _version("clip", str(spec.weights.get("id")), path)
        in_folder = model.startswith(_LOCAL_DIR)
        quick_gelu = bool(spec.preprocessing.get("quick_gelu"))
        try:
            network = open_clip.create_model(
                model, None if in_folder else str(path), force_quick_gelu=quick_gelu, pretrained_text=False
            )
            self._tokenizer = open_clip.get_tokenizer(model)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"{path}: cannot be read as {model}: {' '.join(str(error).split())[:300]}") from None
        self._network, self._device = _ready(network)

    def __call__(self, sentences: Sequence[str]) -> npt.NDArray[np.float32]:
        """``(sentences, dim)``, each row of length 1."""
        import numpy as np
        import torch

        found = []
        for start in range(0, len(sentences), _AT_ONCE):
            tokens = self._tokenizer(list(sentences[start : start + _AT_ONCE])).to(self._device)
            with torch.inference_mode():
                found.append(self._network.encode_text(tokens, normalize=True).float().cpu().numpy())
        return np.concatenate(found)


class _Reader:
    """Texts as numbers of word pieces, those of a length together."""

    def __init__(self, path: Path, most: int, *, filler: int) -> None:
        from tokenizers import BertWordPieceTokenizer, Tokenizer

        try:
            # A plain vocabulary, as of old BERTs, means that of a lower-case one: so are those that are looked for.
            self._tokenizer: Any = (
                BertWordPieceTokenizer(str(path)) if path.suffix == ".txt" else Tokenizer.from_file(str(path))
            )
        except Exception as error:  # noqa: BLE001 - the library raises nothing more particular
            raise CheckpointError(f"{path}: cannot be read as a tokenizer: {error}") from None
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(most)
        self._filler = filler

    def batches(self, texts: Sequence[str], device: str) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """Which texts, their numbers ``(B, T)``, and 1 where there is one ``(B, T)``."""
        import torch

        several = [
            torch.tensor(encoding.ids, dtype=torch.long) for encoding in self._tokenizer.encode_batch(list(texts))
        ]
        order = sorted(range(len(several)), key=lambda place: len(several[place]))
        for start in range(0, len(order), _AT_ONCE):
            places = order[start : start + _AT_ONCE]
            chosen = [several[place] for place in places]
            pad = torch.nn.utils.rnn.pad_sequence
            ids = pad(chosen, batch_first=True, padding_value=self._filler)
            mask = pad([torch.ones_like(row) for row in chosen], batch_first=True)
            yield places, ids.to(device), mask.to(device)


def _ready(network: Any) -> tuple[Any, str]:
    """On the GPU if there is one, for evaluation; and the device."""
    import torch

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    return network.eval().requires_grad_(False).to(device), device


def _resolved(network: str, place: str, parts: Mapping[str, Sequence[str]]) -> weights.WeightFiles:
    """:func:`avpipe.pipeline.weights.resolve`, whose message is told how a scorer is told where weights are."""
    try:
        return weights.resolve(place, parts, component=network, has_random=False)
    except MissingWeightsError as error:
        advice = f'AVPIPE_{network.upper()}=PLACE, or in Python Tools(weights={{"{network}": PLACE}})'
        raise MissingWeightsError(f"{error}\n  - A scorer is told where they are by {advice}.") from None


def _local_file(network: str, place: str) -> Path:
    path = Path(place).expanduser()
    if not is_readable(path):
        raise MissingWeightsError(
            f"{network}: there is no file {path}. A scorer is told where it is by AVPIPE_{network.upper()}=PATH, or in "
            f'Python Tools(weights={{"{network}": PATH}})'
        )
    return path


def _find_echecker(place: str) -> Path:
    """The file of a detector.

    Raises:
        MissingWeightsError: there is none.
    """
    if weights.looks_local(place) or place.endswith(".ckpt"):
        return _local_file("echecker", place)
    if place not in ECHECKERS:
        raise MissingWeightsError(
            f"echecker: no weights {place!r}: expected a .ckpt file or one of {', '.join(ECHECKERS)}"
        )
    torch_home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
    folders = [cache_folder(), os.environ.get("FENSE_DATA"), "~/.fense_data", Path(torch_home) / "hub" / "fense_data"]
    looked = [Path(folder).expanduser() / f"{place}.ckpt" for folder in folders if folder]
    for path in looked:
        if is_readable(path):
            digest = weights.sha256_of(path)
            if digest != ECHECKERS[place]:
                raise CheckpointError(
                    f"{path}: expected the sha256 {ECHECKERS[place][:16]}... of the public {place}, got {digest[:16]}"
                    "...: it is damaged, or another; give it as a path to use it nevertheless"
                )
            return path
    raise MissingWeightsError(
        f"echecker: no weights {place!r}: not at {', '.join(map(str, looked))}.\n"
        f"  - On a machine with a network: curl -LO {_RELEASE}/{place}.ckpt\n"
        f"    Copy it to {looked[0].parent}, or say where it is: AVPIPE_ECHECKER=PATH, in Python "
        "Tools(weights={'echecker': PATH})"
    )


def _find_clip(spec: FeatureSpec, place: str) -> tuple[str, Path]:
    """What open_clip calls a model, and its weights.

    Raises:
        MissingWeightsError: there are none.
    """
    import open_clip

    model = spec.config.get("model")
    folder = place.removeprefix("hf-hub:")
    if model is None or place.startswith("hf-hub:") or Path(place).expanduser().is_dir():
        found = _resolved("clip", folder, {"config": ("open_clip_config.json",), "weights": _CLIP_NAMES})
        return f"{_LOCAL_DIR}{found.files['config'].parent}", found.files["weights"]
    facts = open_clip.get_pretrained_cfg(model, place)
    if not facts:
        return model, _local_file("clip", place)
    repository, _, file = facts["hf_hub"].rpartition("/")
    names = (str(Path(file).with_suffix(".safetensors")), file) if file else _CLIP_NAMES
    return model, _resolved("clip", repository, {"weights": names}).files["weights"]


def _version(what: str, name: str, *files: Path) -> str:
    """For signatures: name and sha256 of the weights; and one of what else decides how a sentence is read, if any."""
    own, *others = map(weights.sha256_of, files)
    settings = f"+{hashlib.sha256(''.join(others).encode()).hexdigest()[:8]}" if others else ""
    return f"{what}:{name.rpartition('/')[2]}@{own[:8]}{settings}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not a text: {error}") from None
