"""Uses an exported checkpoint with transformers alone, and prints facts as JSON. test_export.py runs this in a separate process.

argv: the exported folder, an ordinary folder with the same weights, and the name of the export in the hub's cache.
"""

import json
import os
import sys


class NoMultitoken:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "multitoken":
            raise ImportError(f"{name} is not to be imported here")


sys.meta_path.insert(0, NoMultitoken())

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer, pipeline  # noqa: E402
from transformers.utils import logging  # noqa: E402

folder, original, hub_name = sys.argv[1:]
logging.disable_progress_bar()
tokenizer = AutoTokenizer.from_pretrained(folder)
QUESTIONS = [
    "Ada has 48 shells. She finds 37 shells in the attic. How many shells does Ada have now?",
    "Tom has 9 pears. How many pears does Tom have?",
]
CHATS = [[{"role": "user", "content": question}] for question in QUESTIONS]


def inputs(*chats):
    return tokenizer.apply_chat_template(
        list(chats),
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
        padding=True,
        padding_side="left",
    )


def load(name, **options):
    return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **options)


def answer(model, *chats, **options):
    return model.generate(**inputs(*chats), max_new_tokens=60, **options).tolist()


class Collected(TextStreamer):
    texts = []  # noqa: RUF012

    def on_finalized_text(self, text, stream_end=False):
        self.texts.append(text)


plain, ordinary, ours = load(original), load(folder), load(folder, trust_remote_code=True)
facts = {}
facts["wanted"] = [answer(plain, chat) for chat in CHATS]
facts["ordinary"] = [answer(ordinary, chat) for chat in CHATS]
facts["ordinary_is_ordinary"] = "generate" not in vars(ordinary)
for way, model, options in (
    ("by_load", ours, {}),
    ("by_call", ordinary, {"custom_generate": folder, "trust_remote_code": True}),
):
    chunks = []
    options |= {"mtp": {"adaptive": False}, "mtp_chunks": chunks}  # the same number of steps on every machine
    facts[way] = [answer(model, chat, **options) for chat in CHATS]
    facts[f"{way}_chunks"] = [chunk.token_ids for chunk in chunks]
facts["batch_wanted"], facts["batch"] = answer(plain, *CHATS), answer(ours, *CHATS)
seeded = {"do_sample": True, "temperature": 3.0}
facts["sampled"] = [
    answer(ours, CHATS[0], mtp={"seed": 3, "policy": policy}, **seeded) for policy in ("exact", "next-token")
]
for _ in range(2):
    torch.manual_seed(0)
    facts.setdefault("sampled_by_torch", []).append(answer(ours, CHATS[0], **seeded))
stop = {"stop_strings": ["finding"], "tokenizer": tokenizer}
facts["stopped"] = [answer(model, CHATS[0], **stop) for model in (plain, ours)]
streamer = Collected(tokenizer, skip_prompt=True, skip_special_tokens=True)
answer(ours, CHATS[0], streamer=streamer)
facts["streamed"] = "".join(streamer.texts)
prompt = len(inputs(CHATS[0])["input_ids"][0])
facts["text"] = tokenizer.decode(facts["wanted"][0][0][prompt:], skip_special_tokens=True)
pipe = pipeline("text-generation", model=folder, dtype=torch.float32, trust_remote_code=True)
facts["pipeline_is_ours"] = "generate" in vars(pipe.model)
facts["piped"] = pipe(CHATS[0], max_new_tokens=60, do_sample=False)[0]["generated_text"][-1]["content"]
if hub_name:
    pinned = load(hub_name, trust_remote_code=True, revision=os.environ["GOOD_REVISION"])
    facts["from_hub"] = [answer(pinned, chat) for chat in CHATS]
facts["imported"] = sorted(name for name in sys.modules if name.split(".")[0] == "multitoken")
print(json.dumps(facts))
