"""The clip that the playground shows beside its example."""

from __future__ import annotations

from builder import example_clip
from wan_engine.catalog import known_models


def test_it_was_made_by_the_model_that_the_page_names_from_the_picture_and_prompt_of_the_page() -> (
    None
):
    clip = example_clip.CLIP.read_bytes()
    assert len(clip) < 150_000
    comment = f"AI-generated video; model {example_clip.MODEL}; seed "
    for told in (comment, example_clip.prompt(), example_clip.picture_hash()):
        assert told.encode() in clip, "run `python -m builder.example_clip`"
    assert example_clip.MODEL in known_models()
    page = (example_clip.STATIC / "index.html").read_text("utf-8")
    assert f"Made by {example_clip.MODEL}, a toy model that needs no GPU." in page
