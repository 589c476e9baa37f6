"""A conversation of two turns, streamed: `python examples/chat.py`."""

import multitoken as mt
from multitoken.quickstart.embedded import checkpoint

model = mt.load(checkpoint("gated"))
messages = []
for question in ("Please count from 12 to 30.", "Repeat 'red apple' 4 times."):
    messages.append({"role": "user", "content": question})
    print(f"> {question}")
    text = ""
    for chunk in model.stream(messages):
        print(chunk.text, end="|", flush=True)  # a bar after each forward pass
        text += chunk.text
    print()
    messages.append({"role": "assistant", "content": text})
