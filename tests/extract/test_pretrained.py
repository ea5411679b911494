"""What encoders that read checkpoints of transformers share."""

from __future__ import annotations

from avpipe.extract.encoders import _pretrained


def test_names_and_labels_are_no_part_of_a_network() -> None:
    one = {"hidden_act": "gelu", "id2label": {"0": "a"}, "vision_config": {"heads": 2, "dtype": "float16"}}
    other = {"hidden_act": "gelu", "architectures": ["X"], "vision_config": {"heads": 2}}
    heads = {"hidden_act": "gelu", "vision_config": {"heads": 4}}
    assert _pretrained.network_of(one) == _pretrained.network_of(other) != _pretrained.network_of(heads)
