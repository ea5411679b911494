"""What encoders that read checkpoints of transformers share."""

from __future__ import annotations

import threading

from transformers.utils import logging

from avpipe.extract.encoders import _pretrained


def test_the_last_thread_to_leave_restores_what_the_first_one_found() -> None:
    def loudness() -> tuple[int, bool]:
        return logging.get_verbosity(), logging.is_progress_bar_enabled()

    before = loudness()
    is_in, may_leave = threading.Event(), threading.Event()

    def first() -> None:
        with _pretrained.quiet():
            is_in.set()
            may_leave.wait(30)

    thread = threading.Thread(target=first)
    thread.start()
    assert is_in.wait(30)
    with _pretrained.quiet():
        may_leave.set()
        thread.join()
        assert loudness() == (logging.ERROR, False)
    assert loudness() == before


def test_names_and_labels_are_no_part_of_a_network() -> None:
    one = {"hidden_act": "gelu", "id2label": {"0": "a"}, "vision_config": {"heads": 2, "dtype": "float16"}}
    other = {"hidden_act": "gelu", "architectures": ["X"], "vision_config": {"heads": 2}}
    heads = {"hidden_act": "gelu", "vision_config": {"heads": 4}}
    assert _pretrained.network_of(one) == _pretrained.network_of(other) != _pretrained.network_of(heads)
