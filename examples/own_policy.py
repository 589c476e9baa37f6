"""Compare thresholds on your own prompts, and print the fastest: `python examples/own_policy.py`."""

import multitoken as mt
from multitoken.quickstart.corpus import examples
from multitoken.quickstart.embedded import checkpoint

model = mt.load(checkpoint("gated"))
prompts = [example.prompt for example in examples("word-problems", "test", 4)]

speed = {}
for threshold in (0.3, 0.5, 0.7, 0.9):
    answers = model.generate(prompts, policy=mt.Exact(threshold), adaptive=False, max_new_tokens=120)
    speed[threshold] = sum(answer.tokens_per_step for answer in answers) / len(answers)
    print(f"Exact {threshold}: {speed[threshold]:.2f} tokens per step")
print(f"fastest: {max(speed, key=speed.get)}")
