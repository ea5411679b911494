"""What a training run is told: a recipe file with dotted overrides, checked whole before anything starts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from avpipe.pipeline.config import Config, parse, parse_component, read_yaml, recipe_names, recipe_path
from avpipe.pipeline.config import override as lay_over
from avpipe.pipeline.errors import ConfigError
from avpipe.pipeline.features import Modality
from avpipe.train import decoders, fusions, objectives

Component = dict[str, Any]
"""``{"name": "qformer", "layers": 4, ...}``, complete."""

LengthPenaltyForm = Literal["hf", "gnmt"]

Target = Literal["current", "next"]

Warmup = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^\d+(\.\d+)?( ?%| epochs?)$")]
"""Optimizer steps; or ``"5%"`` of all steps, or ``"1 epoch"``."""


class TokenizerConfig(Config):
    """Where the words come from."""

    name: str = "trained"
    """``trained``: byte-level BPE learned from the training captions; else a Hub id or a local folder."""
    vocabulary_size: int = Field(8000, ge=300)
    """Of a trained one: at most this many tokens, the 256 bytes among them."""
    lower_case: bool = True
    """Of a trained one."""
    next_begin: str = "<next>"
    """What the next clip's caption begins with, where ``train.targets`` has it; added if it is not among the tokens (of
    pretrained ones name one that is unused: ``"[unused1]"`` of BERT's)."""


class ParameterGroup(Config):
    """Parameters that are trained in their own way. What is ``null`` is as for the others."""

    match: str
    """Regular expression that is searched for in a parameter's name, as ``fusion.layers.0.attention_norm.weight``. A
    parameter belongs to the first group that it matches; a group without any is an error."""
    lr: float | None = Field(None, gt=0)
    """Peak learning rate; warmup and schedule are those of all, scaled."""
    weight_decay: float | None = Field(None, ge=0)
    """Of those parameters that have weight decay."""
    frozen: bool = False
    """Leave them at their start values."""

    @model_validator(mode="after")
    def _fits(self) -> ParameterGroup:
        try:
            re.compile(self.match)
        except re.error as error:
            raise ValueError(f"match: not a regular expression: {error}: {self.match!r}") from None
        if self.frozen and (self.lr is not None or self.weight_decay is not None):
            raise ValueError("frozen: what is frozen has neither lr nor weight_decay")
        return self


class TrainConfig(Config):
    """The loop."""

    epochs: int = Field(24, ge=1)
    """Passes over the training clips, at most."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps, at most; ``null``: as many as the epochs have."""
    batch_size: int = Field(32, ge=1)
    """Clips (or, with ``captions_per_clip: each``, captions) a step and process."""
    captions_per_clip: PositiveInt | Literal["all", "each"] = 1
    """Captions of a clip that are decoded from one fusion of it: ``all``, or so many, drawn anew each epoch. ``each``:
    one row a caption, each fused for itself, as the papers train."""
    max_caption_tokens: int | None = Field(None, ge=3)
    """Longer captions are cut to so many tokens, begin and end included; ``null``: to what the decoder can hold."""
    targets: tuple[Target, ...] = ("current",)
    """What a clip is to say: its own captions (of speech: predicting the current caption, PCC), and those of the clip
    that follows it in its video (``extra["next_clip"]``; PNC), which begin with ``tokenizer.next_begin``."""
    accumulate: int = Field(1, ge=1)
    """Batches a step."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    final_lr: float = Field(0.0, ge=0)
    """Learning rate at the end of the schedule."""
    warmup_steps: Warmup = 100
    """Linear warmup: optimizer steps, or ``"5%"`` of all steps, or ``"1 epoch"``."""
    warmup_from: float = Field(0.0, ge=0)
    """Learning rate that the warmup begins at."""
    schedule: Literal["cosine", "cosine_epochs", "linear", "hold", "constant"] = "cosine"
    """After the warmup: half a cosine down; the same, but with each epoch and counted without the warmup, which is cut
    off where the first epoch ends (LAVIS's); linearly down; held for the first 60 % of all steps, then linearly down;
    level."""
    weight_decay: float = Field(0.01, ge=0)
    """Of AdamW."""
    weight_decay_of: Literal["matrices", "all"] = "matrices"
    """Whether biases, norms and other vectors have weight decay, too."""
    groups: tuple[ParameterGroup, ...] = ()
    """Parameters, by pattern of their names, with another learning rate or weight decay, or none."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    """Of AdamW."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest norm of the gradient; ``null``: any."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Validate and keep weights averaged over steps, ``ema`` of the former average and the rest of the new ones;
    ``null``: those of the step. Early on the average follows faster: at step n at most ``(1 + n) / (10 + n)``."""
    modality_dropout: dict[Modality, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    """In training, how often a clip loses a modality, whole: ``{video: 0.1, audio: 0.3}``. It always keeps one."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """``auto``: bf16 on a GPU that has it, else fp32."""
    seed: int = Field(0, ge=0)
    """Of weights, order and dropout."""
    init_from: str | None = Field(None, min_length=1)
    """A run, or the folder of a checkpoint: its best weights and its words are what a new training starts from, and all
    of the weights must find their place. ``null``: fresh or public ones."""
    validate_every: int = Field(2, ge=1)
    """Epochs between validations."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many validations without a better score; ``null``: never."""
    save_every: int | None = Field(None, ge=1)
    """Steps between checkpoints, beside those at every validation."""
    log_every: int = Field(10, ge=1)
    """Steps between rows of metrics.jsonl."""
    num_workers: int = Field(0, ge=0)
    """Processes that read features; 0: a thread of the training itself, one batch ahead."""
    cache_features: Literal["auto", "yes", "no"] = "auto"
    """Whether to hold all features in memory; ``auto``: if they take at most a quarter of what is free."""
    tensorboard: bool = True
    """Write TensorBoard events, if the package is installed."""
    wandb: str | None = Field(None, min_length=1)
    """Log to this project of Weights & Biases, too (``pip install wandb``; ``WANDB_MODE=offline`` without network)."""

    @field_validator("cache_features", mode="before")
    @classmethod
    def _yes_and_no(cls, value: Any) -> Any:
        return {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value  # as YAML reads them

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        if len(set(self.targets)) != len(self.targets) or "current" not in self.targets:
            raise ValueError(f"targets: expected [current] or [current, next], got {list(self.targets)}")
        if self.final_lr > self.lr or self.warmup_from > self.lr:
            raise ValueError(
                f"final_lr, warmup_from: expected at most lr ({self.lr}), got {self.final_lr}, {self.warmup_from}"
            )
        return self


class GenerateConfig(Config):
    """The beam search."""

    beams: int = Field(3, ge=1)
    """Hypotheses that are followed."""
    max_tokens: int = Field(30, ge=1)
    """Longest caption, end included."""
    min_tokens: int = Field(1, ge=0)
    """Shortest caption, end not included."""
    length_penalty: float = 1.0
    """Score = log-probability / tokens ** this, the end counted; or of the other form."""
    length_penalty_form: LengthPenaltyForm = "hf"
    """``hf``: Hugging Face's, tokens ** penalty; ``gnmt``: ((5 + tokens) / 6) ** penalty, GIT's and AVCap's."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Hugging Face's: above 1, words that the caption has already are less likely; below (MICap's code: 0.6), more."""
    batch_size: int = Field(64, ge=1)
    """Clips at once."""

    @model_validator(mode="after")
    def _can_end(self) -> GenerateConfig:
        if self.min_tokens >= self.max_tokens:
            raise ValueError(f"min_tokens: expected less than max_tokens ({self.max_tokens}), got {self.min_tokens}")
        return self


class RunConfig(Config):
    """Everything about a run. ``fusion``, ``decoder``, ``objectives`` are complete: all fields of their ``Config``."""

    dataset: str = ""
    """Which dataset; empty: the only one with features."""
    features: tuple[str, ...] = ()
    """Feature sets to train on; empty: all there are."""
    modalities: tuple[Modality, ...] = ()
    """Use feature sets of these modalities alone; empty: all."""
    fusion: Component = Field(default_factory=lambda: {"name": "qformer"})
    """The fusion's name and settings."""
    decoder: Component = Field(default_factory=lambda: {"name": "transformer"})
    """The decoder's name and settings."""
    objectives: dict[str, dict[str, Any]] = Field({"cross_entropy": {}})
    """What is minimised: settings of each objective by its name, ``weight`` among them. ``cross_entropy`` is always
    there; with weight 0 it is left out."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """Where the words come from."""
    train: TrainConfig = TrainConfig()
    """The loop."""
    generate: GenerateConfig = GenerateConfig()
    """The beam search."""


def recipes() -> list[str]:
    """The recipes that come with avpipe."""
    return recipe_names("avpipe.train")


def read(recipe: str, overrides: Sequence[str] = (), settings: Mapping[str, Any] | None = None) -> RunConfig:
    """A recipe with settings and overrides laid over it.

    Args:
        recipe: the name of one that comes with avpipe, or a path to a YAML file.
        overrides: dotted: ``train.lr=1e-4``.
        settings: what other options of the command line say, by dotted key; laid over first.

    Raises:
        UnknownNameError: no such recipe, fusion, decoder or objective.
        ConfigError: keys or values are wrong; all faults at once.
    """
    path = recipe_path("avpipe.train", recipe, "training recipe")
    values = read_yaml(path)
    for key, value in (settings or {}).items():
        node = values
        *parents, last = key.split(".")
        for parent in parents:
            below = {} if node.get(parent) is None else node[parent]  # "train:" with nothing below it
            if not isinstance(below, dict):
                raise ConfigError(str(path), [f"{parent}: expected keys and values, got {below!r}"])
            node[parent] = node = below
        there = node.get(last)
        # Another component than the recipe's brings its own defaults.
        same = isinstance(there, dict) and there.get("name") == value
        node[last] = there if same else value
    return check(lay_over(values, overrides), str(path) if not overrides else f"{path} with overrides")


def check(values: Mapping[str, Any], source: str) -> RunConfig:
    """Check a whole configuration and complete its components.

    Raises:
        UnknownNameError: no such fusion, decoder or objective.
        ConfigError: all faults at once.
    """
    faults: list[str] = []
    complete = dict(values)
    for kind, registry in (("fusion", fusions.REGISTRY), ("decoder", decoders.REGISTRY)):
        given = values.get(kind, getattr(RunConfig(), kind))
        if not isinstance(given.get("name") if isinstance(given, Mapping) else given, str):
            known = ", ".join(registry.names())
            faults.append(f"{kind}: expected a name, or a mapping with a name, got {given!r}; known: {known}")
            complete.pop(kind, None)
            continue
        try:
            name, config = parse_component(registry, given, source)
            complete[kind] = {"name": name, **config.model_dump(mode="json")}
        except ConfigError as error:
            faults += [f"{kind}.{fault}".replace(f"{kind}.(top level)", kind, 1) for fault in error.faults]
            complete.pop(kind, None)
    complete = _smoothing_moved(complete, faults)
    complete["objectives"] = _objectives(complete.get("objectives"), source, faults)
    try:
        config = parse(RunConfig, complete, source)
    except ConfigError as error:
        raise ConfigError(source, [*faults, *error.faults]) from None
    if faults:
        raise ConfigError(source, faults)
    return config


def _objectives(given: Any, source: str, faults: list[str]) -> dict[str, dict[str, Any]]:
    """The objectives, complete, in an order that does not hang on how they were written; faults are added."""
    known = ", ".join(objectives.REGISTRY.names())
    if given is not None and not isinstance(given, Mapping):
        example = "{contrastive: {weight: 0.5}}"
        faults.append(f"objectives: expected settings by name, such as {example}, got {given!r}; known: {known}")
        return {}
    complete: dict[str, dict[str, Any]] = {}
    before, asked = len(faults), {"cross_entropy": None, **(given or {})}
    for name in sorted(asked, key=lambda name: (name != "cross_entropy", str(name))):
        schema, settings = objectives.REGISTRY.load(str(name)).Config, asked[name]
        if settings is not None and not isinstance(settings, Mapping):
            faults.append(f"objectives.{name}: expected settings, such as {{weight: 0.5}}, got {settings!r}")
            continue
        try:
            complete[name] = parse(schema, settings or {}, source).model_dump(mode="json")
        except ConfigError as error:
            faults += [f"objectives.{name}.{fault}".replace(".(top level)", "", 1) for fault in error.faults]
    counted = {name for name, settings in complete.items() if settings["weight"]}
    for name in sorted(counted):
        for other in getattr(objectives.REGISTRY.load(name), "REPLACES", ()):
            if other in counted:
                fault = f"its sum has the loss of {other} already: expected objectives.{other}.weight=0"
                faults.append(f"objectives.{name}: {fault}, got {complete[other]['weight']}")
    if not counted and len(faults) == before:
        faults.append(f"objectives: every weight is 0, nothing would be learned; known: {known}")
    return complete


def _smoothing_moved(values: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    """``train.label_smoothing``, where it stood before there were objectives, as a setting of ``cross_entropy``."""
    given, there = values.get("train"), values.get("objectives") or {}
    if not isinstance(given, Mapping) or "label_smoothing" not in given or not isinstance(there, Mapping):
        return values
    own = there.get("cross_entropy") or {}
    if not isinstance(own, Mapping):
        return values
    train, smoothing = dict(given), given["label_smoothing"]
    del train["label_smoothing"]
    if own.get("label_smoothing", smoothing) != smoothing:
        faults.append(
            f"train.label_smoothing: expected what objectives.cross_entropy.label_smoothing says, "
            f"{own['label_smoothing']!r}, got {smoothing!r}; leave it out"
        )
    settings = {**there, "cross_entropy": {"label_smoothing": smoothing, **own}}
    return {**values, "train": train, "objectives": settings}
