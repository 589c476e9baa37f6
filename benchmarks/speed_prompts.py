"""Prompts for measuring speed: fresh ones of the embedded tasks, short or with solved examples before them."""

from multitoken.models.model import Model
from multitoken.quickstart.corpus import examples

DOMAINS = ("word-problems", "letters", "counting")
NEW = 200  # most new tokens


def prompts_of(model: Model, domain: str, number: int, length: int | None) -> list[list[int]]:
    """Fresh prompts. With `length`, each has solved examples before it, as many as fit in that many tokens."""
    prompts = []
    shots = iter(examples(domain, "speed", 4000, start=10_000))
    for example in examples(domain, "speed", number):
        messages: list[dict[str, str]] = []
        ids = model.encode([{"role": "user", "content": example.prompt}])
        while length is not None:
            shot = next(shots)
            more = [{"role": "user", "content": shot.prompt}, {"role": "assistant", "content": shot.response}]
            longer = model.encode([*messages, *more, {"role": "user", "content": example.prompt}])
            if len(longer) > length:
                break
            messages, ids = [*messages, *more], longer
        prompts.append(ids)
    return prompts
