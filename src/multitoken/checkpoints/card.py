"""The model card of an exported checkpoint: `README.md` with the Hub's metadata. It contains no path of this machine."""

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
    """The facts that a card states. `base` is a hub name, or None if the base's hub name is not known; `decoding` is the `mtp`
    block of `generation_config.json`; `adapted` and `exported` are provenance records."""

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
    """The license entries of the base's own model card; empty if they are not known."""
    card = folder / "README.md" if folder is not None and (folder / "README.md").is_file() else None
    try:
        if card is None and hub_name is not None:
            found = cached_file(hub_name, "README.md", **QUIET)
            card = Path(found) if found else None
        facts = metadata_load(card) if card is not None else None
    except (OSError, ValueError, yaml.YAMLError):  # a card that cannot be fetched or read gives no license
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
            "It changes nothing at real tokens, so next-token decoding is identical to the original's. The `exact` policy "
            "confirms every drafted token by the original's own next-token prediction, so its output is identical as well "
            "(equal ids in float32)."
        )
        what = (
            f"A gated adapter for {_base_link(facts)} that acts at mask tokens only"
            if facts.reference
            else f"{_base_link(facts)}, its weights unchanged, with a gated adapter that acts at mask tokens only"
        )
        return f"{what}. With it, the model writes up to {k} tokens per step (arXiv 2602.06019). {kept}"
    return (
        f"{_base_link(facts)}, adapted (`{facts.mtp.method}`) to write up to {k} tokens per step (arXiv 2602.06019). Its "
        "weights are no longer the original's. Under the `exact` policy its answers are identical to those of its own "
        "next-token decoding, at several tokens per step."
    )


def _use(facts: Facts) -> str:
    settings = ", ".join(f"`{key}` {value}" for key, value in facts.decoding.items())
    gate = "" if facts.mtp.method != "gated" else " The adapter is in `mtp_adapter/`; ordinary decoding never reads it."
    return f"""

With transformers 5.19 or newer; multitoken need not be installed:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{facts.name}")
model = AutoModelForCausalLM.from_pretrained("{facts.name}", trust_remote_code=True)
{_CHAT if facts.is_chat else _TEXT}
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=200)[0]))
```

`trust_remote_code=True` lets transformers run the decoding loop in `custom_generate/`, whose files are copies of
multitoken's own. Without it this is an ordinary model that writes one token per step. A model that was loaded without it can
use the loop for a single call: `model.generate(**inputs, custom_generate="{facts.name}", trust_remote_code=True)`.
`pipeline`, `TextStreamer`, sampling, batches and stop strings work as usual.{gate}

The default policy is set in `generation_config.json: mtp` ({settings}). A call can set another one:
`model.generate(**inputs, mtp={{"policy": "confadapt", "threshold": 0.9}})`. Policies: `exact`, whose output is identical to
next-token decoding; `confadapt`, which accepts confident tokens and may differ; `static`; `next-token`.

With multitoken:

```python
import multitoken as mt

answer = mt.load("{facts.name}").generate("Your prompt")
print(answer.text, answer.tokens_per_step)
```"""


def _use_of_reference(facts: Facts) -> str:
    return f"""

This folder holds only the adapter. It needs multitoken, which fetches the base (`{facts.base}`) and checks that its
weights are those that the adapter was made for (`{facts.mtp.base_hash[:19]}`):

```python
import multitoken as mt

answer = mt.load("{facts.name}").generate("Your prompt")
print(answer.text, answer.tokens_per_step)
```

It is not a LoRA adapter for PEFT, although its file format is PEFT's: PEFT, and transformers' `from_pretrained` where PEFT is
installed, would apply it at every token, and the output would be wrong. For use without multitoken, export the checkpoint
without `--reference`, which writes base and adapter together."""


_NOT_MEASURED = """Not yet. `multitoken evaluate {name} --original BASE --task questions.jsonl --output evaluation` measures
accuracy, speed and how many outputs are identical; `multitoken export ... --evaluation evaluation` adds the results here."""


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
    if command == "-c":  # sys.argv of `python -c`, similar in a notebook
        command = "(called from Python)"
    return f"```\n{command}\n```\n\n{date}: {versions or 'versions unknown'}{where}."
