"""Helpers that compare two functions on the same model: transformers' own `model.generate`, and our `generate`."""

from string import ascii_letters, digits

import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from multitoken.decoding import Chunk
from multitoken.decoding.generate import generate
from tests.parity.families import EOS, MASK, SUPPORTED, VOCABULARY

NEW = 24
EXACT = {"policy": "exact", "threshold": 0.0, "adaptive": False}
PROMPTS = [torch.randint(6, 90, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (5, 17, 11)]
HOLDING = "gpt2, drafts that often hold"


def letters() -> PreTrainedTokenizerFast:
    """Each token is a letter, a digit or a pair such as "ab". Only the ids 0 to 5, 94 and 95 have other names, such as <0>."""
    pairs = [ascii_letters[i : i + 2] for i in range(26)]
    tokens = [*(f"<{i}>" for i in range(6)), *ascii_letters, *digits, *pairs, "<94>", "<95>"]
    merges = [(pair[0], pair[1]) for pair in pairs]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<1>", eos_token="<5>", pad_token="<0>")


TOKENIZER = letters()
FAMILIES = [HOLDING, *SUPPORTED]


def model_of(family: str, **mtp) -> PreTrainedModel:
    """A random model in float64. Its config has an `mtp` block, like that of an adapted model."""
    model = (holding() if family == HOLDING else SUPPORTED[family]()).double()
    model.config.mtp = {"k": 6, "mask_token_id": MASK, **mtp}
    return model


def holding() -> PreTrainedModel:
    """A model whose output depends mostly on the position, and only a little on the tokens. A mask therefore often predicts what
    a token would."""
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3,
        bos_token_id=1, eos_token_id=EOS, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.wte.weight *= 0.25
    return model


def padded(prompts: list[list[int]], side: str = "left") -> dict[str, Tensor]:
    """Input ids and attention mask."""
    longest = max(map(len, prompts))
    rows, masks = [], []
    for prompt in prompts:
        padding = [0] * (longest - len(prompt))
        rows.append(padding + prompt if side == "left" else prompt + padding)
        there = [1] * len(prompt)
        masks.append(padding + there if side == "left" else there + padding)
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}


def reference(model: PreTrainedModel, prompts: list[list[int]], **options):
    """Transformers' answer. The mask token is suppressed, as in our decoding."""
    suppressed = [MASK, *options.pop("suppress_tokens", [])]
    return model.generate(**padded(prompts), **{"max_new_tokens": NEW, "suppress_tokens": suppressed, **options})


def ours(model: PreTrainedModel, prompts: list[list[int]], *, side: str = "left", mtp=EXACT, **options):
    return generate(model=model, **padded(prompts, side), **{"max_new_tokens": NEW, "mtp": mtp, **options})


def sizes(chunks: list[Chunk]) -> set[int]:
    return {len(chunk.token_ids) for chunk in chunks}


def new_tokens(sequences: Tensor, prompts: list[list[int]]) -> list[list[int]]:
    """The tokens of each row after the prompts, without the padding after EOS."""
    rows = sequences[:, max(map(len, prompts)) :].tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]
