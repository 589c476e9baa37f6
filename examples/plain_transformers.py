"""Export a checkpoint and decode it with transformers alone: `python examples/plain_transformers.py`."""

import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import multitoken as mt
from multitoken.quickstart.embedded import checkpoint

with tempfile.TemporaryDirectory() as folder:
    exported = Path(folder) / "exported"
    mt.export(checkpoint("gated"), exported)

    tokenizer = AutoTokenizer.from_pretrained(exported)
    # The folder contains the code that decodes it. transformers runs this code only with trust_remote_code=True.
    model = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Please count from 12 to 30."}], add_generation_prompt=True, return_tensors="pt"
    )
    output = model.generate(prompt["input_ids"], attention_mask=prompt["attention_mask"], max_new_tokens=120)
    print(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
