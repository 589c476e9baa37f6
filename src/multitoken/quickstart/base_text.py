"""Text of the embedded base model as tokens: its tokenizer, and the weighted rows and batches that it is trained on."""

import random
from collections.abc import Iterator

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .corpus import LANGUAGE, MIXTURE, Example, mixed

TOKENIZER_SIZE = 2040  # eight rows of the embedding matrix stay unused, as room for a mask token
END, USER, ASSISTANT, PAD = "<|end|>", "<|user|>", "<|assistant|>", "<|pad|>"
Row = tuple[list[int], list[float]]  # token ids, loss weights

POOL = 2048  # how many examples are sorted by length at a time
RESULT_WEIGHT = 3.0  # of the digits after a "="
PROMPT_WEIGHT = 0.1  # prompts are mostly random: learn their language, but spend no capacity on their random choices
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Words with their leading space, single digits, punctuation, line breaks (the split that Qwen and Llama 3 use too).
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_tokenizer(size: int = TOKENIZER_SIZE, sample: int = 20_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `size` tokens with split digits, learned from the first examples of the training
    stream."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, END, USER, ASSISTANT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    stream = mixed("train", mixture=LANGUAGE)
    texts = (text for _, e in zip(range(sample), stream, strict=False) for text in (e.prompt, e.response))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


def encode(
    tokenizer: PreTrainedTokenizerFast, batch: list[Example], result_weight: float = 1.0, end_weight: float = 1.0
) -> list[Row]:
    """(token ids, loss weights) per example; the weight at i is that of predicting token i.

    end_weight: of the end. Where to stop counting is one token among a hundred.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_padding()  # if other code left it on, every row would be padded to the longest of its pool
    user, assistant, end = (int(tokenizer.vocab[token]) for token in (USER, ASSISTANT, END))
    prompts = backend.encode_batch([e.prompt for e in batch], add_special_tokens=False)
    responses = backend.encode_batch([e.response for e in batch], add_special_tokens=False)
    rows = []
    for p, r in zip(prompts, responses, strict=True):
        head, tail = [user, *p.ids, end, assistant], [*r.ids, end]
        weights = [*_weights(r.tokens, result_weight), end_weight]
        rows.append((head + tail, [PROMPT_WEIGHT] * len(head) + weights))
    return rows


def _weights(texts: list[str], result_weight: float) -> list[float]:
    """1 for every token of a response, `result_weight` for the digits behind a "="."""
    weights, in_result = [], False
    for text in texts:
        plain = text.lstrip("\u0120")  # byte-level BPE writes a space like this
        in_result = plain == "=" or (in_result and (plain == "" or plain.isdigit()))
        weights.append(result_weight if in_result and plain.isdigit() else 1.0)
    return weights


def batches(
    tokenizer: PreTrainedTokenizerFast, tokens: int, start: int, practice: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """Endless (ids, weights, next unread example): rows of like length, right-padded, at most `tokens` a batch.

    One example a row: nothing is cut and nothing sees its neighbour, and causal attention needs no mask.
    """
    stream = mixed("train", start, MIXTURE if practice else LANGUAGE)
    order = random.Random(start)
    used = start
    while True:
        fresh = [next(stream) for _ in range(POOL)]
        rows = encode(tokenizer, fresh, RESULT_WEIGHT if practice else 1.0)
        used += POOL
        for ids, weights in grouped(rows, tokens, order):
            yield ids, weights, used


def grouped(rows: list[Row], tokens: int, order: random.Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(ids, weights) [B, T] of rows of like length, right-padded, at most `tokens` a batch or one row, in an order drawn by chance."""
    groups: list[list[Row]] = [[]]
    for row in sorted(rows, key=lambda row: len(row[0])):
        if groups[-1] and len(row[0]) * (len(groups[-1]) + 1) > tokens:
            groups.append([])
        groups[-1].append(row)
    order.shuffle(groups)
    for group in groups:
        longest = max(len(ids) for ids, _ in group)
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in group])
        weights = torch.tensor([w + [0.0] * (longest - len(w)) for _, w in group])
        yield ids, weights
