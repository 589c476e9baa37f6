"""How far a model's positions reach. They end where the result at one position begins to depend on where the others are."""

from typing import Any

from transformers import PreTrainedModel


def position_limit(model: PreTrainedModel) -> int | None:
    """How many positions may be fed, or None if the config sets no limit.

    longrope rotates every position of a pass by other frequencies as soon as one position is beyond
    `original_max_position_embeddings`. A long row in the same batch, or masks that reach beyond, would then change the logits of
    real tokens, so the limit is there. (dynamic does the same beyond `max_position_embeddings`, where every model ends.) Llama 4
    scales the queries of its layers without rotary angles by cache index, which has no effect before `floor_scale` tokens.
    MPT has a table of `max_seq_len` distances.
    """
    config: Any = model.config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", None)]
    if getattr(config, "model_type", None) == "mpt":
        limits.append(config.max_seq_len)
    parameters = getattr(config, "rope_parameters", None) or {}
    for kind in [parameters, *(value for value in parameters.values() if isinstance(value, dict))]:
        if kind.get("rope_type") == "longrope":
            limits.append(
                kind.get("original_max_position_embeddings")
                or getattr(config, "original_max_position_embeddings", None)
            )
    if getattr(config, "model_type", None) == "llama4_text" and getattr(config, "attn_temperature_tuning", False):
        limits.append(config.floor_scale - 1)
    return min((limit for limit in limits if limit is not None), default=None)


def is_shortened(model: PreTrainedModel) -> bool:
    """Whether the limit is below the one that the config gives."""
    named = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return named is not None and position_limit(model) != named
