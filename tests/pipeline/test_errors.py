"""Errors say what was got, what is allowed, what to try; and cross process borders whole."""

from __future__ import annotations

import inspect
import pickle

import pytest

from avpipe.pipeline import errors
from avpipe.pipeline.errors import AvpipeError, ClipError, ConfigError, SkipClip, UnknownNameError, did_you_mean

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]


def example(kind: type[Exception]) -> Exception:
    if kind is UnknownNameError:
        return UnknownNameError("encoder", "clip", ["clip_vit", "ast"], "Or give a path.")
    if kind is ConfigError:
        return ConfigError("recipe.yaml", ["train.lr: missing", "fusion: unknown"])
    if issubclass(kind, ClipError):
        return kind("decode", "moov atom not found")
    return kind("what was got, what is allowed")


@pytest.mark.parametrize("kind", ALL)
def test_every_error_crosses_process_borders_whole(kind: type[Exception]) -> None:
    error = example(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


@pytest.mark.parametrize("kind", ALL)
def test_every_error_stands_in_the_drawn_tree(kind: type[Exception]) -> None:
    assert kind.__name__ in (errors.__doc__ or "")
    assert issubclass(kind, AvpipeError) != issubclass(kind, ClipError)


def test_exit_status() -> None:
    assert {kind.__name__ for kind in ALL if getattr(kind, "exit_status", None) == 2} == {
        "UsageError",
        "UnknownNameError",
        "ConfigError",
    }


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    message = str(UnknownNameError("fusion", "qfromer", ["qformer", "concat"], "Or write one."))
    assert message == "unknown fusion 'qfromer' (did you mean 'qformer'?); known: concat, qformer. Or write one."
    assert str(UnknownNameError("fusion", "x", [])) == "unknown fusion 'x'; known: none"


def test_a_configuration_error_lists_all_faults() -> None:
    assert str(ConfigError("a.yaml", ["one", "two"])) == "a.yaml: 2 faults\n  - one\n  - two"
    assert str(ConfigError("a.yaml", ["one"])).startswith("a.yaml: 1 fault\n")


def test_a_skipped_clip_is_no_failed_clip() -> None:
    assert (ClipError("a", "b").status, SkipClip("a", "b").status) == ("failed", "skipped")


def test_did_you_mean() -> None:
    assert did_you_mean("qfromer", ["qformer", "concat"]) == " (did you mean 'qformer'?)"
    assert did_you_mean("zzz", ["qformer", "concat"]) == ""
