"""Tiny tokenizers and models with random weights for tests. They are built in milliseconds, without any files."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"


def tiny_tokenizer(
    vocab_size: int = 60,
    *,
    extra: Iterable[str] = (),
    at: Mapping[str, int] | None = None,
    chat_template: str | None = None,
) -> PreTrainedTokenizerFast:
    """A word tokenizer of `vocab_size` tokens in which the word `w7` has the id 7.

    Ids 0 to 3 are `<pad> <s> </s> <unk>`. `extra` names special tokens, counted in `vocab_size`, that take the last
    ids. `at` puts further words at chosen ids, which can leave unused ids in between. Words are split at spaces.
    """
    special = [*extra]
    words = vocab_size - 4 - len(special)
    assert words >= 0, f"vocab_size {vocab_size} has no room for 4 + {len(special)} special tokens"
    names = [PAD, BOS, EOS, UNK, *(f"w{i}" for i in range(4, 4 + words)), *special]
    vocabulary = {name: i for i, name in enumerate(names)} | dict(at or {})
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        chat_template=chat_template,
    )


def tiny_llama(tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, **config: Any) -> LlamaForCausalLM:
    """A Llama with random weights, in eval mode, with as many embedding rows as the tokenizer has tokens. `config`
    overrides any of its settings."""
    return _build(LlamaForCausalLM, LlamaConfig, _decoder(tokenizer, config), seed)


def tiny_qwen3(tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, **config: Any) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights, in eval mode; see `tiny_llama`."""
    return _build(Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16} | _decoder(tokenizer, config), seed)


def tiny_gpt2(tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, **config: Any) -> GPT2LMHeadModel:
    """A GPT-2 with random weights (tied weights, learned positions), in eval mode; see `tiny_llama`."""
    settings = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256} | _vocabulary(tokenizer) | config
    return _build(GPT2LMHeadModel, GPT2Config, settings, seed)


def _decoder(tokenizer: PreTrainedTokenizerFast, config: dict[str, Any]) -> dict[str, Any]:
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 256}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    # With a large spread the logits differ by whole units, so a wrong mask or position is visible.
    return size | heads | {"initializer_range": 0.3} | _vocabulary(tokenizer) | config


def _vocabulary(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": max(tokenizer.get_vocab().values()) + 1,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _build(model: Any, config: Any, settings: dict[str, Any], seed: int) -> Any:
    dtype = settings.pop("dtype", torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = model(config(**settings)).eval()
    for parameter in built.parameters():
        # Not model.to(dtype): it would also round the rotary frequencies, which from_pretrained does not.
        parameter.data = parameter.data.to(dtype)
    return built
