"""Choose the mask token and add it to a model and its tokenizer.

There are three options, the least intrusive first:

1. a row of the embedding matrix beyond every id of the tokenizer (matrices are often padded to a round number);
2. a reserved token (`<|reserved_special_token_7|>`, `<unused42>`, ...) that nothing uses;
3. one new row. It changes the shapes of matrices and with them the order of summation, so the original's logits change in their
   last bits. A gated adapter holds the mask token's vector itself and does not change the matrix: the id is then beyond its rows.
"""

import json
import re
from collections.abc import Iterable, Set
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from multitoken.errors import ModelError, UnsupportedModelError

MASK = "<MTP>"
# Names of tokens that models reserve for later use. T5's <extra_id_N> are not among them: those were trained.
RESERVED = re.compile(
    r"<\|?(?:reserved(?:_special)?(?:_token)?|unused(?:_token)?|extra|placeholder|dummy|special)_?\d+\|?>"
    r"|\[(?:unused(?:_token)?|control)_?\d+\]"
    r"|<｜place▁holder▁no▁\d+｜>",
    re.IGNORECASE,
)

Origin = Literal["unused row", "reserved token", "new row", "beyond"]


@dataclass(frozen=True)
class MaskToken:
    """The mask token's id, its text in the tokenizer, and where its row of the embedding matrix came from."""

    id: int
    token: str
    origin: Origin

    def describe(self) -> str:
        """A sentence about how the mask token was chosen."""
        match self.origin:
            case "unused row":
                return f"used row {self.id} of the embedding matrix, which no token used, for {self.token!r}"
            case "reserved token":
                return f"used the reserved token {self.token!r} (id {self.id}), which was free"
            case "beyond":
                return f"gave {self.token!r} the id {self.id}, after the last row of the embedding matrix, which is unchanged"
            case "new row":
                return f"added row {self.id} to the embedding matrix, which had no free row, for {self.token!r}"


def add_mask_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, texts: Iterable[str] = (), seed: int = 0
) -> MaskToken:
    """Add a mask token that nothing else uses to `model` and `tokenizer`, which are both changed in place.

    `texts` are the training texts: a reserved token that occurs in them is not free. `seed`: the new row is drawn at random with
    the mean and spread of the rows in use, in the input matrix and, if it is not tied, in the output matrix too. If the tokenizer
    already has a token `<MTP>`, the mask token is called `<MTP_2>`, and so on.

    Raises ModelError if the model already has a mask token, UnsupportedModelError if its vocabulary cannot hold one.
    """
    used = _used_rows(model, tokenizer)
    mask = _find(model, tokenizer, texts)
    if mask.origin == "new row":
        _resize(model, mask.id + 1)
    _register(tokenizer, mask)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for matrix in _matrices(model):
            matrix[mask.id] = _typical(matrix, used[used != mask.id], generator)
    return mask


def reserve_mask_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, texts: Iterable[str] = (), seed: int = 0
) -> tuple[MaskToken, torch.Tensor]:
    """Like `add_mask_token`, but the model is not changed: the mask token's vector [hidden] is returned instead."""
    used = _used_rows(model, tokenizer)
    mask = _find(model, tokenizer, texts)
    if mask.origin == "new row":
        mask = replace(mask, origin="beyond")
    _register(tokenizer, mask)
    return mask, _typical(_matrices(model)[0], used[used != mask.id], torch.Generator().manual_seed(seed))


def _used_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    rows = _matrices(model)[0].shape[0]
    return torch.tensor(sorted({i for i in tokenizer.get_vocab().values() if i < rows}))


def _find(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> MaskToken:
    if (block := getattr(model.config, "mtp", None)) is not None:
        raise ModelError(f"the model already has a mask token (config.mtp = {block!r}); use that one")
    return _choose(_matrices(model)[0].shape[0], tokenizer, tokenizer.get_vocab(), _named_ids(model), texts)


def _choose(
    rows: int,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: dict[str, int],
    named: Set[int],
    texts: Iterable[str],
) -> MaskToken:
    name = next(name for name in chain([MASK], (f"<MTP_{n}>" for n in count(2))) if name not in vocabulary)
    beyond = max(vocabulary.values()) + 1
    for row in range(beyond, rows):
        if row not in named:
            return MaskToken(row, name, "unused row")
    if reserved := _reserved(rows, tokenizer, vocabulary, named, texts):
        return MaskToken(vocabulary[reserved], reserved, "reserved token")
    return MaskToken(next(i for i in count(max(beyond, rows)) if i not in named), name, "new row")


def _reserved(
    rows: int,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: dict[str, int],
    named: Set[int],
    texts: Iterable[str],
) -> str | None:
    """The free reserved token with the highest id: fine-tunes that use such tokens start with the lowest."""
    candidates = {t for t, i in vocabulary.items() if RESERVED.fullmatch(t) and i < rows and i not in named}
    candidates -= set(tokenizer.special_tokens_map.values())
    if not candidates:
        return None
    # A tokenizer may have several templates in a dict; the dict's repr holds the text of all of them.
    for text in chain([str(tokenizer.chat_template or "")], texts):
        candidates -= set(RESERVED.findall(text))
    return max(candidates, key=lambda token: vocabulary[token], default=None)


def _named_ids(model: PreTrainedModel) -> set[int]:
    """Ids that the configuration gives a role (`eos_token_id` and the like), whether the tokenizer has them or not."""
    ids: set[int] = set()
    for config in (model.config, model.config.get_text_config(), getattr(model, "generation_config", None)):
        for key, value in config.to_dict().items() if config is not None else ():
            if key.endswith(("_token_id", "_token_ids")):
                ids.update(i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int))
    return ids


def _matrices(model: PreTrainedModel) -> list[torch.Tensor]:
    """The input matrix [vocabulary, hidden] and, if the two are not tied, the output matrix with the same number of rows."""
    name = type(model).__name__
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or head is None:
        raise UnsupportedModelError(
            f"{name} has no ordinary input and output embeddings (found {type(embedding).__name__} and "
            f"{type(head).__name__}): it cannot take a mask token"
        )
    source, target = embedding.weight, head.weight
    size = model.config.get_text_config().vocab_size
    if not source.shape[0] == target.shape[0] == size:
        raise UnsupportedModelError(
            f"{name} has {source.shape[0]} input rows and {target.shape[0]} output rows for vocab_size = {size}: a mask "
            "token needs these three numbers to be equal"
        )
    if not (source.is_floating_point() and target.is_floating_point()):
        raise UnsupportedModelError(f"{name} has quantised embeddings ({source.dtype}): load it unquantised")
    return [source] if source is target else [source, target]


def _resize(model: PreTrainedModel, rows: int) -> None:
    before = model.get_input_embeddings()
    # A second table over token ids (Gemma's per-layer embeddings) would not grow with the first, which is an index error later.
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module is not before and module.num_embeddings == before.num_embeddings:
            raise UnsupportedModelError(
                f"{type(model).__name__} has a second table over the vocabulary ({name}) and no free row or reserved "
                "token: it cannot take a mask token"
            )
    try:
        model.resize_token_embeddings(rows, mean_resizing=False)
    except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no free row or reserved token, and its vocabulary cannot grow to {rows} rows: "
            f"{error}"
        ) from error


def _register(tokenizer: PreTrainedTokenizerBase, mask: MaskToken) -> None:
    """Make `mask.token` a special token with the id `mask.id`, so that its text is tokenised to that id everywhere."""
    special = AddedToken(mask.token, special=True, normalized=False)
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        _reserve_id(tokenizer, special, mask.id)
    addition: dict[str, Any] = {"extra_special_tokens": [special]}
    tokenizer.add_special_tokens(addition, replace_extra_special_tokens=False)
    owners = [token for token, i in tokenizer.get_vocab().items() if i == mask.id]
    typed = tokenizer(mask.token, add_special_tokens=False)["input_ids"]
    if owners != [mask.token] or mask.id not in typed:
        raise UnsupportedModelError(
            f"{type(tokenizer).__name__} cannot give {mask.token!r} the id {mask.id} (id {mask.id} is {owners}, the text "
            f"became {typed}): use a model with a tokenizer.json whose ids have no gaps"
        )


def _reserve_id(tokenizer: PreTrainedTokenizerFast, special: AddedToken, wanted: int) -> None:
    """Write the token into the vocabulary itself if adding it would give it another id than `wanted`.

    An added token gets the *number* of tokens as its id. If the ids have gaps, that id may already belong to a token.
    """
    state = tokenizer.backend_tokenizer.to_str()
    trial = Tokenizer.from_str(state)
    trial.add_special_tokens([special])
    if trial.token_to_id(special.content) == wanted:
        return
    content = json.loads(state)
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, dict):  # a Unigram model has a list, whose indices are the ids: `_register` refuses it
        vocabulary[special.content] = wanted
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))


@torch.no_grad()
def _typical(matrix: torch.Tensor, used: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A vector drawn with the mean and spread, per column, of the rows `used` of `matrix` [vocabulary, hidden]."""
    total = torch.zeros(matrix.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    # Slices in float64: sums over 150,000 bf16 rows would be inaccurate, and a float copy of the whole matrix would be large.
    for ids in used.split(8192):
        values = matrix[ids.to(matrix.device)].cpu().double()
        total += values.sum(0)
        squares += values.square().sum(0)
    mean = total / len(used)
    spread = (squares / len(used) - mean.square()).clamp(min=0).sqrt()
    noise = torch.randn(len(mean), generator=generator, dtype=torch.float64)
    return (mean + spread * noise).to(matrix)
