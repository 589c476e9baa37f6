"""The model card of an exported checkpoint: `README.md` with the Hub's metadata. Nothing in it names a place here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load
from transformers.utils.hub import cached_file

from multitoken.models.gated import QUIET
from multitoken.models.mtp_config import MtpConfig

from .measured import PICTURE, RESULTS, Measured

CODE_FOLDER, EVALUATION_FOLDER = "custom_generate", "evaluation"
_LICENSE = ("license", "license_name", "license_link")


_TEXT = 'inputs = tokenizer("Your prompt", return_tensors="pt")'
_CHAT = """messages = [{"role": "user", "content": "Your prompt"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)"""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a card says. `base` is a hub name, or None where the base has none that is known; `decoding` is the `mtp` block
    of `generation_config.json`; `adapted` and `exported` are provenance records."""

    name: str
    mtp: MtpConfig
    decoding: Mapping[str, Any]
    reference: bool
    is_chat: bool
    base: str | None
    license: Mapping[str, str]
    adapted: Mapping[str, Any]
    exported: Mapping[str, Any]
    measured: Measured | None = None


def model_card(facts: Facts) -> str:
    """The text of README.md."""
    parts = [
        f"---\n{yaml.safe_dump(_metadata(facts), sort_keys=False, allow_unicode=True)}---",
        f"# {facts.name}",
        _what(facts),
        "## Use" + (_use_of_reference(facts) if facts.reference else _use(facts)),
        "## Measured\n\n" + (_measured(facts.measured) if facts.measured else _NOT_MEASURED.format(name=facts.name)),
        "## How it was made\n\n" + _made(facts),
    ]
    return "\n\n".join(parts) + "\n"


def license_of(folder: Path | None, hub_name: str | None) -> dict[str, str]:
    """What the base's own model card says of its license; nothing where that is not known."""
    card = folder / "README.md" if folder is not None and (folder / "README.md").is_file() else None
    try:
        if card is None and hub_name is not None:
            found = cached_file(hub_name, "README.md", **QUIET)
            card = Path(found) if found else None
        facts = metadata_load(card) if card is not None else None
    except (OSError, ValueError, yaml.YAMLError):  # a card that cannot be had or read says nothing
        return {}
    return {key: str(facts[key]) for key in _LICENSE if facts and facts.get(key)}


def _metadata(facts: Facts) -> dict[str, Any]:
    tags = ["multi-token-prediction", "multitoken", f"multitoken-{facts.mtp.method}", "arxiv:2602.06019"]
    found: dict[str, Any] = {
        "library_name": "multitoken" if facts.reference else "transformers",
        "pipeline_tag": "text-generation",
        "tags": tags if facts.reference else ["custom_generate", *tags],
    }
    if facts.base is not None:
        found["base_model"] = facts.base
        found["base_model_relation"] = "adapter" if facts.reference else "finetune"
    return found | dict(facts.license)


def _base_link(facts: Facts) -> str:
    return f"[{facts.base}](https://huggingface.co/{facts.base})" if facts.base else f"`{facts.mtp.base_name}`"


def _what(facts: Facts) -> str:
    k = facts.mtp.k
    if facts.mtp.method == "gated":
        kept = (
            "It changes nothing at real tokens: next-token decoding is the original's, and under the `exact` policy, which "
            "confirms every drafted token by the original's own word, so is every token that comes out (equal ids in "
            "float32)."
        )
        what = (
            f"A gated adapter for {_base_link(facts)} that acts at mask tokens only"
            if facts.reference
            else f"{_base_link(facts)}, its weights unchanged, with a gated adapter that acts at mask tokens only"
        )
        return f"{what}, and lets it write up to {k} tokens a step (arXiv 2602.06019). {kept}"
    return (
        f"{_base_link(facts)}, adapted (`{facts.mtp.method}`) to write up to {k} tokens a step (arXiv 2602.06019). Its "
        "weights are not the original's any more: under the `exact` policy its answers are those of its own next-token "
        "decoding, at several tokens a step."
    )


def _use(facts: Facts) -> str:
    settings = ", ".join(f"`{key}` {value}" for key, value in facts.decoding.items())
    gate = (
        ""
        if facts.mtp.method != "gated"
        else " The adapter lies in `mtp_adapter/`, and ordinary decoding never reads it."
    )
    return f"""

With transformers 5.19 or newer; multitoken need not be installed:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{facts.name}")
model = AutoModelForCausalLM.from_pretrained("{facts.name}", trust_remote_code=True)
{_CHAT if facts.is_chat else _TEXT}
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=200)[0]))
```

`trust_remote_code=True` lets transformers run the decoding loop in `custom_generate/`, which is multitoken's own, file by
file. Without it this is an ordinary model that writes a token a step. A model that was loaded so takes the loop for one
call: `model.generate(**inputs, custom_generate="{facts.name}", trust_remote_code=True)`. `pipeline`, `TextStreamer`,
sampling, batches and stop strings work as ever.{gate}

How it decodes stands in `generation_config.json: mtp` ({settings}) and in a call:
`model.generate(**inputs, mtp={{"policy": "confadapt", "threshold": 0.9}})`. Policies: `exact`, whose output is next-token
decoding's; `confadapt`, which keeps what is confident and may differ; `static`; `next-token`.

With multitoken:

```python
import multitoken as mt

answer = mt.load("{facts.name}").generate("Your prompt")
print(answer.text, answer.tokens_per_step)
```"""


def _use_of_reference(facts: Facts) -> str:
    return f"""

This folder holds the adapter alone. It needs multitoken, which fetches the base (`{facts.base}`) and checks that its
weights are those that the adapter was made for (`{facts.mtp.base_hash[:19]}`):

```python
import multitoken as mt

answer = mt.load("{facts.name}").generate("Your prompt")
print(answer.text, answer.tokens_per_step)
```

It is no LoRA adapter for PEFT, though its file format is PEFT's: PEFT, and transformers' `from_pretrained` where PEFT is
installed, would let it act at every token and spoil the model. For use without multitoken, export the checkpoint without
`--reference`: base and adapter together."""


_NOT_MEASURED = """Not yet. `multitoken evaluate {name} --original BASE --task questions.jsonl --output evaluation` measures
accuracy, sameness and speed; `multitoken export ... --evaluation evaluation` puts them here."""


def _measured(measured: Measured) -> str:
    return f"""{measured.table}

![The trade-off: accuracy over tokens per step]({EVALUATION_FOLDER}/{PICTURE})

Tokens per step is (emitted tokens - those of the prefill pass) / forward passes after the prefill; speed is tokens per
second against the original's next-token decoding on the same machine, batch 1; identical means equal token ids, end of
text included. All numbers: `{EVALUATION_FOLDER}/{RESULTS}`.

{_command(measured.provenance)}"""


def _made(facts: Facts) -> str:
    code = "" if facts.reference else f" `{CODE_FOLDER}/` is multitoken's, Apache-2.0."
    return f"""Adapted by

{_command(facts.adapted)}

Exported by

{_command(facts.exported)}

`adapt.json`, where there is one, holds every option and the training log.{code}"""


def _command(record: Mapping[str, Any]) -> str:
    """The command of a provenance record and where it ran."""
    versions = ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items())
    machine = record.get("machine") or {}
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
    where = f", on {machine['cores']} cores of {machine['cpu']}{gpu}" if {"cores", "cpu"} <= machine.keys() else ""
    date = str(record.get("date", ""))[:10] or "date unknown"
    command = str(record.get("command", "")) or "no command recorded"
    if command == "-c":  # sys.argv of `python -c`, and of a notebook's like
        command = "(called from Python)"
    return f"```\n{command}\n```\n\n{date}: {versions or 'versions unknown'}{where}."
