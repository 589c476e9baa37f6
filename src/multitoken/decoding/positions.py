"""How far a model's positions reach: as far as what it computes at one does not depend on where the others are."""

from typing import Any

from transformers import PreTrainedModel


def position_limit(model: PreTrainedModel) -> int | None:
    """Positions that may be fed; None where the config sets no limit.

    longrope turns every position of a pass by other frequencies once one of them lies beyond `original_max_position_embeddings`:
    a long neighbour, or masks that reach over, would change what real tokens say. So there it ends. (dynamic does so beyond
    `max_position_embeddings`, where every model ends.) Llama 4 scales queries of its layers without rotary angles by cache index,
    which does not show before `floor_scale` tokens.
    """
    config: Any = model.config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", None)]
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
    """Whether the limit lies below the one that the config names."""
    named = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return named is not None and position_limit(model) != named
