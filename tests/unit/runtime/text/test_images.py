"""Images are refused, by what the engine lacks."""

from __future__ import annotations

import pytest

from llmc.runtime.engine_file.info import drafting, drafts_left_out, left_out, parts_left_out
from llmc.runtime.errors import Unsupported
from llmc.runtime.text.images import no_images, refuse_images

TEXT = {"type": "text", "text": "a"}


def test_parts_are_among_the_unused_tensors_in_words():
    unused = {
        "lm_head.weight": "bit-equal to the tied embedding",
        "model.visual": left_out("vision tower", 390),
        "mlp1": left_out("projector of images", 1),
        "model.layers.46": drafting(401),
    }
    assert parts_left_out(unused) == [
        "vision tower left out: 390 tensors of model.visual",
        "projector of images left out: 1 tensor of mlp1",
    ]
    assert drafts_left_out(unused) == ["left out: an extra layer that drafts tokens: 401 tensors of model.layers.46"]
    assert parts_left_out({}) == drafts_left_out({}) == []


def test_the_refusal_names_the_parts_or_says_that_there_were_none():
    assert str(no_images("m.llmc", ["vision tower left out: 2 tensors of visual"])) == (
        "cannot read an image with m.llmc\n  found: vision tower left out: 2 tensors of visual\n  try: text alone"
    )
    assert "found: a text model, which has no image part" in str(no_images("m.llmc", ()))


@pytest.mark.parametrize("kind", ["image", "image_url", "video", "input_audio"])
def test_a_message_with_an_image_is_refused(kind: str):
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": [TEXT, {"type": kind}]}]
    with pytest.raises(Unsupported, match=r"cannot read an image with X\n  found: tower"):
        refuse_images(messages, "X", ["tower"])


@pytest.mark.parametrize("messages", [[{"role": "user", "content": [TEXT, "b"]}], [{"role": "user"}], ["x"], None, 7])
def test_whatever_holds_no_image_is_left_to_others(messages):
    refuse_images(messages, "X", ())
