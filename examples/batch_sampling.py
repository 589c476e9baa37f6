"""Sample several prompts side by side. Next-token decoding with the same seed gives the same texts: `python examples/batch_sampling.py`."""

import multitoken as mt
from multitoken.quickstart.corpus import examples
from multitoken.quickstart.embedded import checkpoint

model = mt.load(checkpoint("gated"))
prompts = [example.prompt for example in examples("letters", "test", 4)]
sampling = {"temperature": 0.8, "top_p": 0.95, "seed": 7, "max_new_tokens": 80}

fast = model.generate(prompts, **sampling)
plain = model.generate(prompts, policy=mt.NextToken(), **sampling)
for ours, theirs in zip(fast, plain, strict=True):
    print(f"{ours.forward_passes} passes instead of {theirs.forward_passes}, same text: {ours.text == theirs.text}")
