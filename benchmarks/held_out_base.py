"""Train the held-out base: `python -m benchmarks.held_out_base --output ../runs/held-out` (14 minutes on one core).

Results are measured on this model and nothing is tuned on it: no default, recipe or threshold of the project was chosen by
looking at it. It differs from the embedded base in what the code might have come to depend on: the architecture (Qwen3, with
norms on queries and keys), the head size, the vocabulary and its tokenizer, and the amount of training. It is trained on the
same corpus and writes the same language. Its arithmetic is often wrong, but no speed depends on that.

`--minutes` limits the training time, so the weights differ from machine to machine.
"""

from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from benchmarks.small_base import VOCABULARY, options_of, train_small
from multitoken.quickstart.train_base import common_config


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 of 2.6 M parameters with random weights. Its queries are grouped, and its head size is 32, which vLLM's CPU
    attention supports."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        **common_config(tokenizer),
    )
    return Qwen3ForCausalLM(config)


def main() -> None:
    parser = options_of(__doc__, minutes=14.0, tokens_per_batch=3072)
    train_small(parser, parser.parse_args(), build_model)


if __name__ == "__main__":
    main()
