"""Pipelines put together from parts, for tests that exchange some of them."""

from typing import Any

from runtime import Bundle, Pipeline
from runtime.loading import LoadedModel, open_tokenizer


def pipeline_of(bundle: Bundle, sessions: Any, **more: Any) -> Pipeline:
    """A pipeline of loaded graphs; `more` are further parts of a `LoadedModel`."""
    return Pipeline(LoadedModel(bundle=bundle, sessions=sessions, tokenizer=open_tokenizer(bundle), **more))
