"""`generate` refuses by name what it cannot do, and never silently ignores what it is given. Streamers are tested here too."""

import re

import pytest
import torch
from transformers import GenerationConfig, SynthIDTextWatermarkingConfig, TextStreamer
from transformers.generation.streamers import BaseStreamer

from multitoken.decoding import DecodingError
from multitoken.decoding.exported import decoder_of
from multitoken.decoding.generate import generate
from tests.parity.families import SUPPORTED
from tests.parity.generating import EXACT, HOLDING, NEW, PROMPTS, TOKENIZER, model_of, ours, reference, sizes

HELD = torch.zeros(1, 5, 48)
REFUSED = [
    ({"num_beams": 2}, "num_beams"),
    ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "num_beams"),
    ({"constraints": ["x"]}, "constraints"),
    ({"force_words_ids": [[7]]}, "force_words_ids"),
    ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha"),
    ({"dola_layers": "high"}, "dola_layers"),
    ({"guidance_scale": 1.5}, "guidance_scale"),
    ({"token_healing": True}, "token_healing"),
    ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
    ({"assistant_early_exit": 1}, "assistant_early_exit"),
    ({"use_cache": False}, "use_cache"),
    ({"cache_implementation": "static"}, "cache_implementation"),
    ({"output_attentions": True}, "output_attentions"),
    ({"output_hidden_states": True}, "output_hidden_states"),
    ({"length_penalty": 2.0}, "length_penalty"),
    ({"early_stopping": True}, "early_stopping"),
    ({"num_assistant_tokens": 4}, "num_assistant_tokens"),
    ({"prefill_chunk_size": 2}, "prefill_chunk_size"),
    ({"assistant_model": "x"}, "assistant_model"),
    ({"assistant_tokenizer": "x"}, "assistant_tokenizer"),
    ({"past_key_values": [HELD]}, "past_key_values"),
    ({"inputs_embeds": HELD}, "inputs_embeds"),
    ({"position_ids": HELD[..., 0]}, "position_ids"),
    ({"token_type_ids": HELD[..., 0]}, "token_type_ids"),
    ({"negative_prompt_ids": HELD[..., 0]}, "negative_prompt_ids"),
    ({"negative_prompt_attention_mask": HELD[..., 0]}, "negative_prompt_attention_mask"),
    ({"labels": HELD[..., 0]}, "labels"),
    ({"logits_to_keep": 2}, "logits_to_keep"),
    ({"output_router_logits": True}, "output_router_logits"),
    ({"synced_gpus": True}, "synced_gpus"),
    ({"custom_generate": "someone/something"}, "custom_generate"),
    ({"policy": "exact"}, "policy"),
    ({"temprature": 0.5}, r"temprature .* did you mean temperature\?"),
    ({"attention_masks": HELD}, r"attention_masks .* did you mean attention_mask\?"),
    ({"watermarking_config": SynthIDTextWatermarkingConfig(ngram_len=3, keys=[1, 2])}, "watermarking_config"),
    ({"mtp": {"treshold": 1}}, "mtp has no option 'treshold'"),
    ({"mtp": "exact"}, "mtp is 'exact'"),
    ({"mtp": {"policy": "exakt"}}, "policy is 'exakt'"),
    ({"mtp": {"policy": "next-token", "threshold": 0.5}}, "next-token policy has no threshold"),
    ({"mtp": {"k": 7}}, "k is 7, but this model was trained for k up to 6"),
    ({"mtp": {"threshold": 2}}, "threshold is 2"),
    ({"mtp": {"seed": "x"}}, "seed is 'x'"),
    ({"mtp": {"adaptive": "no"}}, "adaptive is 'no'"),
    ({"presence_penalty": "much"}, "presence_penalty is 'much'"),
    ({"frequency_penalty": float("nan")}, "frequency_penalty is nan"),
    ({"do_sample": True, "temperature": 0.0}, "temperature"),
    ({"do_sample": True, "top_p": 1.5}, "top_p"),
    ({"num_return_sequences": 2}, "num_return_sequences"),
    ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"max_new_tokens": 200}, "max_new_tokens is 200"),
    ({"stop_strings": ["."]}, r"stop_strings=\['.'\] need the tokenizer"),
    ({"attention_mask": torch.zeros(1, 5, dtype=torch.long)}, "row 0 is empty"),
]


@pytest.fixture(scope="module")
def llama():
    return model_of("llama")


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[", ".join(options) for options, _ in REFUSED])
def test_what_is_not_supported_is_refused_by_name(llama, options: dict, message: str) -> None:
    """If one of these were ignored, the answer would still look like the one asked for."""
    given = {"input_ids": torch.tensor(PROMPTS[:1]), "max_new_tokens": 4, "mtp": EXACT, **options}
    with pytest.raises(DecodingError, match=message):
        generate(model=llama, **given)


@pytest.mark.parametrize(
    "option",
    [{"num_beams": 2}, {"guidance_scale": 1.5}, {"use_cache": False}, {"prompt_lookup_num_tokens": 3}],
    ids=str,
)
def test_a_generation_config_is_refused_like_the_argument(llama, option: dict) -> None:
    """The same option must also be refused if it comes in a generation config."""
    with pytest.raises(DecodingError, match=next(iter(option))):
        ours(llama, PROMPTS[:1], generation_config=GenerationConfig(**option))


def test_what_a_checkpoint_asks_for_is_refused_where_it_changes_the_text() -> None:
    """A checkpoint that asks for beam search must not silently be decoded greedily. A cache setting changes no text, so it is
    accepted."""
    model = model_of("llama")
    wanted = ours(model, PROMPTS)
    model.generation_config.use_cache = False
    model.generation_config.early_stopping = True
    assert torch.equal(ours(model, PROMPTS), wanted)
    model.generation_config.num_beams = 3
    with pytest.raises(DecodingError, match=r"num_beams=3 .* checkpoint's generation config sets it: pass num_beams=1"):
        ours(model, PROMPTS)
    assert torch.equal(ours(model, PROMPTS, num_beams=1, early_stopping=False), wanted)
    model.generation_config.mtp = {"treshold": 0.5}
    with pytest.raises(DecodingError, match="mtp has no option 'treshold'"):
        ours(model, PROMPTS, num_beams=1, early_stopping=False)


def test_values_that_ask_for_nothing_are_taken(llama) -> None:
    """Wrappers pass every argument, at its default value. These must be accepted."""
    nothing = {
        "num_beams": 1, "use_cache": True, "guidance_scale": 1.0, "assistant_model": None, "synced_gpus": False,
        "output_attentions": False, "past_key_values": None, "streamer": None, "length_penalty": 1.0, "tokenizer": None,
        "stop_strings": None, "trust_remote_code": True, "presence_penalty": None, "temperature": None,
    }  # fmt: skip
    assert torch.equal(ours(llama, PROMPTS, **nothing), reference(llama, PROMPTS))


def test_an_ordinary_model_is_refused() -> None:
    """Without a mask token, a model cannot be decoded here, and the error must say what to do."""
    with pytest.raises(DecodingError, match=r"no mtp block.*adapt it with multitoken"):
        decoder_of(SUPPORTED["llama"]())


class Collects(BaseStreamer):
    def __init__(self) -> None:
        self.got: list[list] = []
        self.ended = 0

    def put(self, value) -> None:
        assert not self.ended
        self.got.append(value.tolist())

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("family", ["llama", HOLDING])
@pytest.mark.parametrize("options", [{}, {"stop_strings": "a", "tokenizer": TOKENIZER}], ids=["", "stop"])
def test_a_streamer_gets_what_transformers_gives_it(family: str, options: dict) -> None:
    """A streamer may rely on getting the prompt, then each token once, in order and separately, then the end."""
    model, chunks = model_of(family), []
    mine, theirs = Collects(), Collects()
    found = ours(model, PROMPTS[:1], streamer=mine, mtp_chunks=chunks, **options)
    assert torch.equal(found, reference(model, PROMPTS[:1], streamer=theirs, **options))
    assert mine.got == theirs.got and mine.ended == theirs.ended == 1
    assert family == "llama" or options or max(sizes(chunks)) > 1


def test_a_text_streamer_prints_the_answer(capsys) -> None:
    """A text streamer holds tokens back until a word is complete. What it holds back must still be printed at the end."""
    model = model_of(HOLDING)
    found = ours(model, PROMPTS[:1], streamer=TextStreamer(TOKENIZER, skip_prompt=True))
    assert capsys.readouterr().out == TOKENIZER.decode(found[0, 5:]) + "\n"
    assert found.shape[1] == 5 + NEW


def test_a_streamer_for_several_rows_is_refused_before_it_gets_anything(llama) -> None:
    """Rows accept different numbers of tokens, so there is no common token to give to a streamer."""
    streamer = Collects()
    with pytest.raises(DecodingError, match=re.escape("a streamer takes one row, found 3")):
        ours(llama, PROMPTS, streamer=streamer)
    assert streamer.got == []
