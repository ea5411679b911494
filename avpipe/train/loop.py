"""The training loop, from top to bottom."""

from __future__ import annotations

import logging
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import gather_object
from torch import Tensor

from avpipe.data_manifests.manifest import TrainingClips
from avpipe.pipeline.clip import Clip
from avpipe.pipeline.config import write_yaml
from avpipe.pipeline.errors import CheckpointError, DataError, TrainingError, UsageError
from avpipe.pipeline.features import FeatureSource
from avpipe.pipeline.files import atomic_write, write_json
from avpipe.train import checkpoint
from avpipe.train.batch import Batch, drop_modalities
from avpipe.train.config import RunConfig
from avpipe.train.dataset import (
    CACHED_SHARE,
    ClipDataset,
    captions_of_next,
    epoch_items,
    fits_in_memory,
    learnable,
    loader,
)
from avpipe.train.generate import caption_all
from avpipe.train.learner import Learner
from avpipe.train.logs import Log, check_log, environment, peak_memory_bytes
from avpipe.train.objective import Split
from avpipe.train.optimizer import Average, freeze, frozen_at_random, learning_rate, parameter_groups
from avpipe.train.steps import steps_of
from avpipe.train.tokenizer import Tokenizer

_logger = logging.getLogger(__name__)

Score = Callable[[Mapping[str, str]], float]
"""Captions by clip id to one number, the larger the better."""

OnEvent = Callable[[Mapping[str, Any]], None]
"""Told of every step (``event: "step"``; ``step, steps, loss, clips``) and validation (``event: "validation"``)."""

MakeTokenizer = Callable[[RunConfig, Sequence[Clip]], Tokenizer]
"""Of a run, from the clips that it learns from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What became of a training.

    Attributes:
        step: optimizer steps in all.
        best_step: of the best checkpoint.
        best_score: its validation score; ``None`` where nothing was scored, and best is last.
        stopped_early: whether patience ran out.
        parameters: how many are trained.
        parameters_total: those and the frozen ones.
        seconds: of training, former calls that were broken off included up to their last checkpoint.
        peak_memory_bytes: the most that was held: on a GPU what torch took of it, else the process's memory.
    """

    step: int
    best_step: int
    best_score: float | None
    stopped_early: bool
    parameters: int
    parameters_total: int
    seconds: float
    peak_memory_bytes: int


@dataclass(slots=True)
class _Progress:
    """Where the training is: what a resumed one must know beside weights, optimizer and random numbers."""

    epoch: int = 0
    batch: int = 0  # of the epoch
    step: int = 0
    best_score: float | None = None
    best_step: int = 0
    validations_without_gain: int = 0
    finished: bool = False
    seconds: float = 0.0  # of training, up to the checkpoint


def train(
    config: RunConfig,
    *,
    sources: Mapping[str, FeatureSource],
    train_clips: Sequence[Clip],
    val_clips: Sequence[Clip],
    run_folder: Path,
    init_from: Path | None = None,
    score: Score | None = None,
    make_tokenizer: MakeTokenizer | None = None,
    on_event: OnEvent = lambda event: None,
) -> TrainResult:
    """Train a captioner, or go on where a former call was broken off.

    A resumed training takes the same steps as an unbroken one, with the same losses: order, dropout and schedule
    depend on the seed and the step alone, and random number generators are part of a checkpoint.

    Started by ``torchrun`` or ``accelerate launch``, several processes share each batch and the validation.

    Args:
        config: everything about the run.
        sources: features by feature-set name.
        train_clips: clips to learn from; those without caption or without any feature are left out.
        val_clips: clips to choose the best checkpoint by.
        run_folder: gets ``config.yaml``, ``env.json``, ``metrics.jsonl``, ``checkpoints/``, and, at the end,
            ``result.json``, which is the result; and ``init_from.json``, which tells what it started from, and which of
            its weights were not there.
        init_from: the checkpoint that ``config.train.init_from`` names; ``None``: it is the folder of one.
        score: of the validation captions; ``None``: no validation, and the last checkpoint is the best.
        make_tokenizer: gives what :func:`new_tokenizer` would, which is asked where nothing is given here.
        on_event: told of steps and validations.

    Raises:
        ConfigError: an objective lacks something of the fusion or the feature sets, or a parameter group has none.
        DataError: there is nothing to learn from, or an objective needs validation clips and there are none.
        FingerprintError: the run's checkpoint was trained on other features.
        CheckpointError: what it goes on or starts from is damaged, or does not fit.
        MissingWeightsError: public weights that a new training starts from are neither here nor to be had.
        TrainingError: the loss or its gradient is not finite; the message names the clips.
        UsageError: a precision, or Weights & Biases, is asked for that is not to be had here.
        ValueError: a clip is of the test split, which is sealed.
    """
    started = time.monotonic()
    TrainingClips(train=tuple(train_clips), val=tuple(val_clips))  # refuses those of the test split
    settings = config.train
    check_log(config)
    specs = {name: source.spec for name, source in sources.items()}
    usable = learnable(train_clips, sources.values())
    if not usable:
        raise DataError(
            f"nothing to learn from: of {len(train_clips)} training clips, none has both a caption and a feature in "
            f"{', '.join(sources) or 'any feature set'}"
        )

    following = captions_of_next(usable) if "next" in settings.targets else None

    # -- devices and seeds ---------------------------------------------------------------------------------------------
    # Norms of a modality that no clip of a batch has, say, have no gradient in that step.
    may_be_unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(mixed_precision=_precision(settings.precision), kwargs_handlers=[may_be_unused])
    is_main = accelerator.is_main_process
    tell = on_event if is_main else lambda event: None
    random.seed(settings.seed)
    np.random.seed(settings.seed % 2**32)
    torch.manual_seed(settings.seed)

    # -- tokenizer, model, optimizer -----------------------------------------------------------------------------------
    last, best = run_folder / "checkpoints" / "last", run_folder / "checkpoints" / "best"
    resumed = checkpoint.find(last)
    start = (init_from or Path(settings.init_from)) if settings.init_from and not resumed else None
    started_from = checkpoint.read(start) if start else None
    there = resumed or start
    tokenizer = Tokenizer.load(there) if there else (make_tokenizer or new_tokenizer)(config, usable)
    if following and tokenizer.special.begin_next is None:
        tokenizer = tokenizer.with_next_begin(config.tokenizer.next_begin)
    captioner = checkpoint.build(config, specs, tokenizer)
    learner = Learner(captioner, config.objectives, specs)
    freeze(learner.named(), settings.groups)
    progress, state = _Progress(), None
    if resumed:
        _, trained_on, _ = checkpoint.read(resumed)
        checkpoint.check_features(trained_on, specs, f"run {run_folder.name!r}")
        checkpoint.load_weights(captioner, resumed)
        state = checkpoint.load_state(resumed)
        learner.objectives.load_state_dict(state.get("objectives", {}))  # older runs have none
        progress = _Progress(**state["progress"])
        started -= progress.seconds  # as if the former call had not been broken off
    elif start and started_from:
        _, features, name = started_from
        new = checkpoint.start_from(captioner, start)
        if is_main:
            # Other features are no error: a second stage may see more frames than the first.
            differences = [
                f"{key}.{line}"
                for key in sorted(features.keys() & specs.keys())
                for line in features[key].differences(specs[key])
            ]
            values = {"checkpoint": name, "new_weights": new, "feature_differences": differences}
            write_json(run_folder / "init_from.json", values)
    else:
        checkpoint.read_start_values(captioner)
        for group, part in frozen_at_random(config):
            _logger.warning("train.groups: %r freezes the %s at RANDOM start values", group, part)
    groups = parameter_groups(learner.named(), settings)
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)
    model, optimizer = accelerator.prepare(learner, optimizer)
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    average = Average(trained, settings.ema) if settings.ema else None
    if state:
        optimizer.load_state_dict(state["optimizer"])
        for group, ours in zip(optimizer.param_groups, groups, strict=True):
            group["scale"] = ours["scale"]  # an older run's has none
        if accelerator.scaler:
            accelerator.scaler.load_state_dict(state["scaler"])
        if average:
            average.load_state_dict(state["average"])
    elif accelerator.num_processes > 1:  # alike until here, so that all begin with the same weights
        torch.manual_seed(settings.seed + accelerator.process_index)

    # -- data ----------------------------------------------------------------------------------------------------------
    cache = settings.cache_features == "yes" or (
        settings.cache_features == "auto"
        and fits_in_memory([*usable, *val_clips], sources, CACHED_SHARE / _processes_here(accelerator))
    )
    longest = min(settings.max_caption_tokens or captioner.max_tokens, captioner.max_tokens)
    if is_main and config.generate.max_tokens > captioner.max_tokens - 1:
        asked, most = config.generate.max_tokens, captioner.max_tokens - 1
        _logger.warning("generate.max_tokens=%d: this decoder ends captions after %d tokens", asked, most)
    data = ClipDataset(
        usable,
        sources,
        tokenizer=tokenizer,
        max_tokens=longest,
        cache=cache,
        following=following,
    )
    learner.prepare(usable, tokenizer)
    val_share = list(val_clips)[accelerator.process_index :: accelerator.num_processes]
    val_data = ClipDataset(val_share, sources, cache=cache)

    measured = {"train": data}
    if learner.needs_held_out:
        held_out = learnable(val_clips, sources.values())
        if not held_out:
            raise DataError(
                "an objective weighs by what is learned of clips that are not trained on, but of "
                f"{len(val_clips)} validation clips none has both a caption and a feature"
            )
        measured["held_out"] = ClipDataset(held_out, sources, tokenizer=tokenizer, max_tokens=longest)

    def batches_to_measure(split: Split, most: int) -> Iterator[Batch]:
        """At most so many clips, spread evenly, the same ones every time; this process's share of them."""
        count = len(measured[split].clips)
        chosen = [index * count // min(most, count) for index in range(min(most, count))]
        share = chosen[accelerator.process_index :: accelerator.num_processes]
        for start in range(0, len(share), settings.batch_size):
            items = [(index, (0,)) for index in share[start : start + settings.batch_size]]
            yield measured[split].batch(items).to(accelerator.device)

    def batches_of(epoch: int) -> list[Any]:
        return epoch_items(
            data,
            seed=settings.seed,
            epoch=epoch,
            batch_size=settings.batch_size * accelerator.num_processes,
            captions_per_clip=settings.captions_per_clip,
        )

    captions = [len(of_clip) for of_clip in data.captions]
    steps_per_epoch, total_steps = steps_of(settings, captions, accelerator.num_processes)

    # -- what the run folder says --------------------------------------------------------------------------------------
    if is_main:
        with atomic_write(run_folder / "config.yaml") as aside:
            aside.write_text(write_yaml(config.model_dump(mode="json")), encoding="utf-8")
        write_json(run_folder / "env.json", environment(accelerator))
    log = Log(run_folder, progress.step, config) if is_main else None

    def save(folder: Path, *, with_state: bool) -> None:
        random_states = gather_object([_random_state()])  # of every process
        if is_main:
            state = None
            if with_state:
                progress.seconds = time.monotonic() - started
                state = {
                    "optimizer": optimizer.state_dict(),
                    "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {},
                    "objectives": learner.objectives.state_dict(),
                    "average": average.state_dict() if average else {},
                    "random": random_states,
                    "progress": {field: getattr(progress, field) for field in progress.__slots__},
                }
            name = f"{run_folder.name}@{progress.step}"
            checkpoint.save(folder, captioner, tokenizer, config, specs, name=name, state=state)
        accelerator.wait_for_everyone()

    def validate() -> float | None:
        """Caption the validation clips with beam search and score them."""
        if score is None or not val_clips:
            return None
        generated = caption_all(captioner, val_data, tokenizer, config.generate, accelerator.device)
        captions = gather_object([(caption.clip_id, caption.text) for caption in generated])
        values = gather_object([score(dict(captions)) if is_main else 0.0])
        return float(values[0])

    # -- the loop ------------------------------------------------------------------------------------------------------
    with log or nullcontext():
        if state:
            _set_random_state(_own(state["random"], accelerator))
        model.train()
        was_finished = progress.finished
        if not state:
            learner.after_epoch(0, batches_to_measure)
        clip_ids: list[str] = []  # of the batches of this step
        sums: dict[str, Tensor] = {}  # of their losses
        while not progress.finished:
            batches = batches_of(progress.epoch)
            waiting = -time.monotonic()  # for data; becomes seconds since the last log row
            rest = _shares(batches[progress.batch :], accelerator)
            for batch in loader(data, rest, settings.num_workers, draw=(settings.seed, progress.epoch)):
                waiting += time.monotonic()
                lr = learning_rate(progress.step, settings, steps_per_epoch=steps_per_epoch, total_steps=total_steps)
                for group in optimizer.param_groups:
                    group["lr"] = lr * group["scale"]
                is_last = progress.batch + 1 == len(batches)
                is_update = is_last or (progress.batch + 1) % settings.accumulate == 0
                # A step is the mean over its batches, of which the last one of an epoch may have fewer.
                first = progress.batch - progress.batch % settings.accumulate
                batches_a_step = min(settings.accumulate, len(batches) - first)
                clip_ids += batch.clip_ids
                # Gradients are summed over the batches of a step, and shared between processes at its end.
                with nullcontext() if is_update else accelerator.no_sync(model):
                    loss, parts = model(drop_modalities(batch, settings.modality_dropout, specs).to(accelerator.device))
                    _check_finite("loss", loss, progress.step, batch.clip_ids, parts)
                    accelerator.backward(loss / batches_a_step)
                for key, value in {"loss": loss.detach(), **parts}.items():
                    sums[key] = sums[key] + value if key in sums else value
                progress.batch += 1
                if is_update:
                    norm = accelerator.clip_grad_norm_(trained, settings.clip_norm or math.inf)
                    # A scaler leaves such a step out, and tries the next one at a smaller scale.
                    if not accelerator.scaler:
                        _check_finite("norm of the gradient", norm, progress.step, clip_ids, parts)
                    optimizer.step()
                    optimizer.zero_grad()
                    learner.after_update()
                    if average:
                        average.update()
                    progress.step += 1
                    of_step = {"step": progress.step, "steps": total_steps, "clips": len(clip_ids)}
                    tell({"event": "step", **of_step, "loss": (sums["loss"] / batches_a_step).item()})
                    if log and progress.step % settings.log_every == 0:
                        told = {name: (value / batches_a_step).item() for name, value in sums.items()}
                        told |= {"lr": lr, "data_seconds": round(waiting, 4)}
                        if torch.isfinite(norm):  # else the scaler left the step out
                            told["grad_norm"] = float(norm)
                        log.row(progress.step, progress.epoch, **told)
                        waiting = 0.0
                    clip_ids, sums = [], {}
                    if progress.step >= total_steps:
                        break
                    if settings.save_every and progress.step % settings.save_every == 0 and not is_last:
                        save(last, with_state=True)
                waiting -= time.monotonic()

            # Once in a while: validate, keep the best, and see whether it is time to stop.
            progress.epoch, progress.batch = progress.epoch + 1, 0
            progress.finished = progress.step >= total_steps or progress.epoch >= settings.epochs
            if not progress.finished:
                learner.after_epoch(progress.epoch, batches_to_measure)
            if progress.finished or progress.epoch % settings.validate_every == 0:
                with average.in_place() if average else nullcontext():
                    value = validate()
                    if value is None or progress.best_score is None or value > progress.best_score:
                        progress.best_score, progress.best_step = value, progress.step
                        progress.validations_without_gain = 0
                        save(best, with_state=False)
                    else:
                        progress.validations_without_gain += 1
                if settings.patience is not None and progress.validations_without_gain >= settings.patience:
                    progress.finished = True
                if log and value is not None:
                    log.row(progress.step, progress.epoch, val_score=value)
                tell({"event": "validation", "step": progress.step, "epoch": progress.epoch, "score": value})
                save(last, with_state=True)

    result = TrainResult(
        step=progress.step,
        best_step=progress.best_step,
        best_score=progress.best_score,
        stopped_early=progress.step < total_steps,
        parameters=sum(parameter.numel() for parameter in trained),
        parameters_total=sum(parameter.numel() for parameter in learner.parameters()),
        seconds=time.monotonic() - started,
        peak_memory_bytes=max(gather_object([peak_memory_bytes()])),
    )
    path = run_folder / "result.json"
    if is_main and not (was_finished and path.exists()):
        write_json(path, asdict(result))
    return result


# -- the parts of a step -----------------------------------------------------------------------------------------------


def _check_finite(what: str, value: Tensor, step: int, clip_ids: Sequence[str], parts: Mapping[str, Tensor]) -> None:
    if not torch.isfinite(value):
        of_it = ", ".join(f"{name}: {part.item():.6g}" for name, part in parts.items())
        raise TrainingError(
            f"the {what} is {value.item()} at step {step}, on the clips {', '.join(clip_ids)} ({of_it}). The last "
            "checkpoint is whole. Try a smaller train.lr, train.precision=fp32, or look at these clips' features "
            "(avpipe verify)"
        )


def _shares(batches: Sequence[Any], accelerator: Accelerator) -> list[Any]:
    """This process's share of each batch; where there are fewer items than processes, the first item again."""
    rank, count = accelerator.process_index, accelerator.num_processes
    return [batch[rank::count] or batch[:1] for batch in batches]


def _processes_here(accelerator: Accelerator) -> int:
    """How many processes of this training are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))


def _precision(asked: str) -> str:
    """As accelerate names it; bf16 where the hardware has it."""
    if asked == "fp16" and not torch.cuda.is_available():
        raise UsageError("train.precision=fp16: only on a GPU are gradients scaled for it. Try bf16, fp32 or auto")
    if asked != "auto":
        return "no" if asked == "fp32" else asked
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"


def new_tokenizer(config: RunConfig, clips: Sequence[Clip]) -> Tokenizer:
    """The tokenizer of a new training, by ``config.tokenizer`` and the captions of the clips alone.

    Raises:
        MissingWeightsError, UsageError: see :meth:`Tokenizer.from_hub`.
    """
    if config.tokenizer.name != "trained":
        return Tokenizer.from_hub(config.tokenizer.name)
    return Tokenizer.trained(
        (caption for clip in clips for caption in clip.captions),
        vocabulary_size=config.tokenizer.vocabulary_size,
        lower_case=config.tokenizer.lower_case,
    )


# -- random numbers ----------------------------------------------------------------------------------------------------


def _random_state() -> dict[str, Any]:
    """Every generator that training may draw from, as tensors and plain values."""
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(internal), gauss],
        "numpy": [np.asarray(keys).tolist(), position, has_gauss, cached],
    }


def _own(states: Any, accelerator: Accelerator) -> Mapping[str, Any]:
    """This process's random state of those of a checkpoint; older ones hold one alone."""
    found = states if isinstance(states, list) else [states]
    if len(found) != accelerator.num_processes:
        raise CheckpointError(
            f"the run was broken off with {len(found)} processes, here are {accelerator.num_processes}: it cannot go "
            "on in the same way. Start as many, or train a new run (--name)"
        )
    own: Mapping[str, Any] = found[accelerator.process_index]
    return own


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) != (torch.cuda.device_count() if torch.cuda.is_available() else 0):
        raise CheckpointError(
            f"the run was broken off with {len(state['cuda'])} GPUs, here are {torch.cuda.device_count()}: it cannot "
            "go on in the same way. Give it as many, or train a new run (--name)"
        )
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))
