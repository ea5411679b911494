"""Checkpoints: a captioner's trainable weights with all that is needed to use it, and a trainer's state to go on.

::

    checkpoints/last/                  after every validation and every `save_every` steps
        model.safetensors              weights, but for those that a part reads from its own files
        config.json                    the run's configuration, the specs of the features it reads, and which files
                                       (by their sha256) those weights are in
        tokenizer.json, special_tokens.json
        trainer.pt                     optimizer, random number generators, position, best score
        complete.json                  sha256 of the others, written last
    checkpoints/best/                  the same without trainer.pt, at the best validation score

A checkpoint is written beside the former one and then takes its name, so that there is a whole one at every moment.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from avpipe.pipeline.errors import CheckpointError, ConfigError, FingerprintError
from avpipe.pipeline.features import FeatureSpec
from avpipe.pipeline.files import sha256, storage_errors, write_json
from avpipe.train import decoders, fusions
from avpipe.train.captioner import Captioner
from avpipe.train.config import RunConfig, check
from avpipe.train.decoders._pretrained import replaced_later
from avpipe.train.tokenizer import Tokenizer

MODEL_FILE, CONFIG_FILE, STATE_FILE, COMPLETE_FILE = "model.safetensors", "config.json", "trainer.pt", "complete.json"


def build(config: RunConfig, specs: Mapping[str, FeatureSpec], tokenizer: Tokenizer) -> Captioner:
    """A captioner with fresh weights, drawn from torch's global generator."""
    fusion_config = {key: value for key, value in config.fusion.items() if key != "name"}
    decoder_config = {key: value for key, value in config.decoder.items() if key != "name"}
    fusion_module = fusions.REGISTRY.load(config.fusion["name"])
    decoder_module = decoders.REGISTRY.load(config.decoder["name"])
    fusion = fusion_module.Fusion(fusion_module.Config(**fusion_config), specs)
    decoder = build_decoder(
        decoder_module,
        decoder_module.Config(**decoder_config),
        fused_width=fusion.width,
        specs=specs,
        tokenizer=tokenizer,
    )
    return Captioner(fusion, decoder)


def build_decoder(
    module: ModuleType, config: Any, *, fused_width: int, specs: Mapping[str, FeatureSpec], tokenizer: Tokenizer
) -> nn.Module:
    """A module's decoder. One that must know more than sizes asks for ``specs`` or ``tokenizer`` by these names."""
    asked = inspect.signature(module.Decoder).parameters
    more = {key: value for key, value in (("specs", specs), ("tokenizer", tokenizer)) if key in asked}
    decoder: nn.Module = module.Decoder(
        config, fused_width=fused_width, vocabulary_size=tokenizer.vocabulary_size, **more
    )
    return decoder


def read_start_values(captioner: Captioner) -> None:
    """Let the parts of a captioner that is to be trained anew read the public weights that they start from, if any.

    A part that can has a method of this name; one that is read from a checkpoint, or goes on from one, is not asked:
    those files need not be there any more.

    Raises:
        MissingWeightsError: they are neither here nor to be had.
        CheckpointError: they do not fit.
    """
    for part in (captioner.fusion, captioner.decoder):
        read = getattr(part, "read_start_values", None)
        if read is not None:
            read()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedCaptioner:
    """A captioner that is ready to caption, and what it must be fed.

    Attributes:
        captioner: in eval mode, on the CPU.
        tokenizer: its words.
        config: of its run.
        specs: of the features that it reads, by name.
        name: ``<run>@<step>``, for captions to say what made them.
    """

    captioner: Captioner
    tokenizer: Tokenizer
    config: RunConfig
    specs: Mapping[str, FeatureSpec]
    name: str


def save(
    folder: Path,
    captioner: Captioner,
    tokenizer: Tokenizer,
    config: RunConfig,
    specs: Mapping[str, FeatureSpec],
    *,
    name: str,
    state: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint in the place of a former one.

    Args:
        folder: ``.../checkpoints/last``.
        captioner: its parameters are written but for :attr:`Captioner.elsewhere`, and its buffers.
        tokenizer: its words.
        config: of the run.
        specs: of the features that it reads.
        name: ``<run>@<step>``.
        state: of the trainer; tensors and plain values.

    Raises:
        StoreError: it cannot be written.
    """
    new = folder.with_name(f"{folder.name}.new")
    with storage_errors(folder):
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        save_file(_stored(captioner), new / MODEL_FILE)
        tokenizer.save(new)
        values = {
            "name": name,
            "run": config.model_dump(mode="json"),
            "features": {key: {**spec.to_json(), "fingerprint": spec.fingerprint} for key, spec in specs.items()},
            "frozen": _frozen(captioner),
        }
        write_json(new / CONFIG_FILE, values)
        if state is not None:
            torch.save(dict(state), new / STATE_FILE)
        write_json(new / COMPLETE_FILE, {path.name: sha256(path) for path in sorted(new.iterdir())})
        _swap(folder)


def _swap(folder: Path) -> None:
    """Put ``<folder>.new`` in the place of ``<folder>``; :func:`find` finishes what a kill in between leaves."""
    new, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def find(folder: Path) -> Path | None:
    """The checkpoint at ``folder``, or the whole one that a kill left beside it; ``None`` if there is none."""
    new = folder.with_name(f"{folder.name}.new")
    if not folder.exists() and (new / COMPLETE_FILE).exists():
        with storage_errors(folder):
            _swap(folder)
    return folder if (folder / COMPLETE_FILE).exists() else None


def load(folder: Path) -> LoadedCaptioner:
    """Read a captioner from a checkpoint.

    Raises:
        CheckpointError: there is none, it is damaged, or its weights do not fit.
    """
    config, specs, name = read(folder)
    tokenizer = Tokenizer.load(folder)
    with replaced_later():
        captioner = build(config, specs, tokenizer)
    load_weights(captioner, folder)
    captioner.eval()
    return LoadedCaptioner(captioner=captioner, tokenizer=tokenizer, config=config, specs=specs, name=name)


def read(folder: Path) -> tuple[RunConfig, dict[str, FeatureSpec], str]:
    """What a checkpoint says of itself, without its weights: the run's configuration, feature specs, and its name.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    values = _read_config(folder)
    try:
        config = check(values["run"], str(folder / CONFIG_FILE))
        specs = {name: FeatureSpec.from_json(spec) for name, spec in values["features"].items()}
        name = str(values["name"])
    except (KeyError, ValueError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: not the configuration of a run: {error}") from None
    return config, specs, name


def start_from(captioner: Captioner, folder: Path) -> list[str]:
    """Let a captioner that is to be trained anew start from the weights of a checkpoint.

    Each of them must find its place. What the captioner has beside them (LoRA, say) keeps its fresh values, or reads
    the public ones that it starts from.

    Returns:
        The names of what the checkpoint does not hold.

    Raises:
        CheckpointError: one of its weights has no place, or none of its shape.
        MissingWeightsError: as in :func:`read_start_values`.
    """
    with safe_open(folder / MODEL_FILE, framework="pt") as stored:  # the names alone
        new = sorted(_stored(captioner).keys() - set(stored.keys()))
    for name in ("fusion", "decoder"):
        read = getattr(getattr(captioner, name), "read_start_values", None)
        if read is not None and any(weight.startswith(f"{name}.") for weight in new):
            read()
    load_weights(captioner, folder, whole=False)
    return new


def load_weights(captioner: Captioner, folder: Path, *, whole: bool = True) -> None:
    """Read a checkpoint's weights into a captioner that was built alike; if not ``whole``, it may have others beside.

    Raises:
        CheckpointError: names or shapes differ, the file is damaged, or what is frozen is not what it was.
    """
    with storage_errors(folder, "read"):
        before = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("frozen") or {}
    files = getattr(captioner.decoder, "weight_files", None)
    now = files.to_spec() if before and files else {}
    if before and before.get("sha256") != now.get("sha256"):
        told = [f"{each.get('id')} (sha256 {str(each.get('sha256'))[:12]})" for each in (before, now)]
        raise CheckpointError(
            f"{folder}: what is frozen in its decoder is not in the checkpoint; it was read from {told[0]}, and "
            f"decoder.weights has other weights now: {told[1]}. Put those of then in their place, or train a new run"
        )
    stored = load_file(folder / MODEL_FILE)
    expected = _stored(captioner)
    absent = sorted(expected.keys() - stored.keys()) if whole else []
    wrong = [f"{name}: not in the checkpoint" for name in absent]
    wrong += [f"{name}: not in the captioner" for name in sorted(stored.keys() - expected.keys())]
    wrong += [
        f"{name}: {list(stored[name].shape)} in the checkpoint, {list(expected[name].shape)} in the captioner"
        for name in sorted(expected.keys() & stored.keys())
        if stored[name].shape != expected[name].shape
    ]
    if wrong:
        lines = "\n".join(f"  - {line}" for line in wrong[:10])
        raise CheckpointError(f"{folder}: {len(wrong)} weights do not fit the captioner\n{lines}")
    captioner.load_state_dict(stored, strict=False)  # what is frozen comes from elsewhere, and is not stored


def load_state(folder: Path) -> dict[str, Any]:
    """The trainer's state of a checkpoint.

    Raises:
        CheckpointError: it has none, or it is damaged.
    """
    _read_config(folder)
    path = folder / STATE_FILE
    if not path.exists():
        raise CheckpointError(f"{folder} has no {STATE_FILE}: it can caption, but not be trained on")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def check_features(specs: Mapping[str, FeatureSpec], there: Mapping[str, FeatureSpec], what: str) -> None:
    """Refuse features that are not those a checkpoint was trained on.

    Args:
        specs: what the checkpoint was trained on.
        there: what it would be fed.
        what: the checkpoint, for the message.

    Raises:
        FingerprintError: a feature set is missing or another; the message names the fields that differ.
    """
    faults = [f"{name}: not there" for name in specs if name not in there]
    for name, spec in specs.items():
        if name in there and there[name].fingerprint != spec.fingerprint:
            faults += [f"{name}.{line}" for line in spec.differences(there[name])]
    if faults:
        lines = "\n".join(f"  - {line}" for line in faults)
        raise FingerprintError(
            f"{what} was trained on other features (those against these):\n{lines}\n"
            "Extract with the settings of then, or train a new run on these (--name)"
        )


def _read_config(folder: Path) -> dict[str, Any]:
    """Check that the checkpoint is whole, and read its configuration."""
    if find(folder) is None:
        raise CheckpointError(f"no whole checkpoint at {folder}; was the run broken off before its first one?")
    with storage_errors(folder, "read"):
        sums = json.loads((folder / COMPLETE_FILE).read_text(encoding="utf-8"))
        broken = [
            name for name, expected in sums.items() if not (folder / name).exists() or sha256(folder / name) != expected
        ]
        if broken:
            raise CheckpointError(f"{folder} is damaged: {', '.join(broken)} is not what was written")
        values: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return values


def _frozen(captioner: Captioner) -> dict[str, Any]:
    """Which files the decoder's parameters come from that no checkpoint holds: id and sha256. Empty: there are none."""
    files = getattr(captioner.decoder, "weight_files", None)
    if files is None or not any(name.startswith("decoder.") for name in captioner.elsewhere):
        return {}
    found: dict[str, Any] = files.to_spec()
    return found


def _stored(captioner: Captioner) -> dict[str, Tensor]:
    """What a checkpoint holds: all parameters but those that come from elsewhere, and buffers that are saved. What is
    tied is there once.
    """
    first = {name for name, _ in captioner.named_parameters()}
    second = {name for name, _ in captioner.named_parameters(remove_duplicate=False)} - first
    left_out = second | captioner.elsewhere
    return {name: tensor.contiguous() for name, tensor in captioner.state_dict().items() if name not in left_out}
