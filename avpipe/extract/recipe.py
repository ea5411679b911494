"""Which encoders to run, and how: a recipe file, ``--encoders``, and dotted overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from avpipe.extract.encoder import Encoder
from avpipe.extract.encoders import REGISTRY
from avpipe.extract.media import TextRequest, libraries
from avpipe.pipeline.config import override, parse_component, read_yaml, recipe_names, recipe_path
from avpipe.pipeline.errors import ConfigError, FingerprintError, UnknownNameError, UsageError
from avpipe.pipeline.features import IMPORTED, FeatureSpec

DEFAULT = "default"


def names() -> list[str]:
    """The recipes that come with avpipe."""
    return recipe_names("avpipe.extract")


def read(recipe: str) -> dict[str, Any]:
    """The ``encoders`` of a recipe, by feature-set name.

    Args:
        recipe: the name of a recipe that comes with avpipe, or a path to a YAML file.

    Raises:
        UnknownNameError: neither.
        ConfigError: the file is not ``encoders: {name: {...}}``.
    """
    path = recipe_path("avpipe.extract", recipe, "extraction recipe")
    values = read_yaml(path)
    encoders = values.get("encoders")
    if set(values) != {"encoders"} or not isinstance(encoders, Mapping) or not encoders:
        raise ConfigError(str(path), [f"expected one key 'encoders' with a mapping below it, got {sorted(values)}"])
    return dict(encoders)


def choose(recipe: str, chosen: Sequence[str] = (), overrides: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The encoders to run: those of the recipe, or those chosen, with overrides laid over them.

    Args:
        recipe: see :func:`read`.
        chosen: feature-set names. One that the recipe has keeps the recipe's settings; any other must be an encoder's
            name and runs with its defaults.
        overrides: ``clip_vit.frames=8``.

    Returns:
        For each feature set, its settings; the key ``encoder`` names the module where it is not the set's own name.

    Raises:
        UnknownNameError: a chosen name is neither in the recipe nor an encoder.
        ConfigError: an override reaches a feature set that is not chosen.
    """
    known = read(recipe)
    if chosen:
        unknown = [name for name in chosen if name not in known and name not in REGISTRY.names()]
        if unknown:
            raise UnknownNameError("encoder", unknown[0], [*REGISTRY.names(), *known])
        known = {name: known.get(name) or {} for name in chosen}
    strays = sorted({text.split(".")[0].split("=")[0] for text in overrides} - set(known))
    if strays:
        allowed = ", ".join(known)
        raise ConfigError("overrides", [f"{name}: no feature set of this run; known: {allowed}" for name in strays])
    return override({name: dict(settings or {}) for name, settings in known.items()}, overrides)


def build(
    chosen: Mapping[str, Mapping[str, Any]], texts: Mapping[str, FeatureSpec] | None = None
) -> dict[str, Encoder]:
    """The encoders, by feature-set name. No weights are read into memory yet.

    Args:
        chosen: settings by feature-set name.
        texts: feature sets of text that are there already, for encoders that read.

    Raises:
        UnknownNameError, ConfigError: a name or a setting is wrong.
        MissingWeightsError: weights are neither here nor to be had.
        UsageError: an encoder reads a text that is neither there nor among those chosen.
    """
    encoders = {}
    for name, settings in chosen.items():
        values = {**settings, "name": settings.get("encoder", name)}
        values.pop("encoder", None)
        module, config = parse_component(REGISTRY, values, f"feature set {name!r}")
        encoder: Encoder = REGISTRY.load(module).Encoder(config, name)
        # Every encoder sees what these libraries decoded: their versions belong to every feature's identity.
        encoder.spec = replace(encoder.spec, libraries={**encoder.spec.libraries, **libraries()})
        encoders[name] = encoder
    known = {**(texts or {}), **{name: encoder.spec for name, encoder in encoders.items()}}
    for name, encoder in encoders.items():
        if isinstance(encoder.request, TextRequest):
            encoder.spec = replace(encoder.spec, source=_source(name, encoder.request.of, known))
    return encoders


def _source(reader: str, of: str, known: Mapping[str, FeatureSpec]) -> dict[str, Any]:
    """What a feature spec says of the text that its encoder reads."""
    spec = known.get(of)
    if spec is None or not spec.is_text:
        there = ", ".join(sorted(name for name, known_spec in known.items() if known_spec.is_text)) or "none"
        what = "no such feature set" if spec is None else "it holds no text"
        raise UsageError(
            f"{reader} reads the text of {of!r}: {what}. Feature sets with text: {there}. Name one with "
            f"{reader}.of=NAME, or extract it beside this one (--encoders {of},{reader})"
        )
    return {**spec.to_json(), "fingerprint": spec.fingerprint}


def rebuild(specs: Mapping[str, FeatureSpec]) -> dict[str, Encoder]:
    """The encoders that once made features of these specs: how a checkpoint captions a new file. Those whose text one
    of them reads are among them.

    Raises:
        FingerprintError: the encoder of today would give other features than those specs promise.
        UsageError: one was imported.
    """
    imported = [name for name, spec in specs.items() if spec.encoder == IMPORTED]
    if imported:
        raise UsageError(
            f"feature set {imported[0]!r} was imported: avpipe has no encoder that makes such features. Make them as "
            f"they were made, then: avpipe features import"
        )
    sources = [FeatureSpec.from_json(spec.source) for spec in specs.values() if spec.source]
    specs = {**{source.name: source for source in sources}, **specs}
    encoders = build({name: {**spec.config, "encoder": spec.encoder} for name, spec in specs.items()})
    for name, encoder in encoders.items():
        if encoder.spec.fingerprint != specs[name].fingerprint:
            lines = "\n".join(f"  - {line}" for line in specs[name].differences(encoder.spec))
            raise FingerprintError(
                f"the encoder of feature set {name!r} would give other features today than those that the checkpoint "
                f"was trained on (then against now):\n{lines}\n"
                "Install the versions of then, or train again on features of today."
            )
    return encoders
