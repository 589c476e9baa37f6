"""Convert to UNO and back: draft adapters as SGLang serves them (`--speculative-algorithm UNO`), in PEFT's format without a mask
vector.

SGLang 0.5.23 reads `adapter_config.json` (peft_type, r, lora_alpha, target_modules: the last part of each name counts) and every
`*.safetensors` file of the folder. The tensor names must hold `layers.N.` and PEFT's `lora_A` and `lora_B`. A layer with an
update of k_proj or v_proj needs an update of q_proj as well.
"""

from pathlib import Path

from safetensors.torch import load_file, save_file

from multitoken.decoding.gate_file import CONFIG, MASK_VECTOR, WEIGHTS
from multitoken.errors import UsageError
from multitoken.models.gated import is_adapter, read_adapter_config
from multitoken.models.loading import load_causal_lm

from .adapter import save_adapter
from .atomic import atomic_folder, check_output, write_json


def export_uno(source: str | Path, output: str | Path, *, overwrite: bool = False) -> str:
    """Write a gated adapter that was trained with `masks="noise"` as an UNO adapter. Returns the command that serves it.

    Raises `UsageError` for an adapter with a mask vector, which the UNO format cannot hold, and `OutputError` if it cannot be
    written.
    """
    source, output = Path(source), Path(output)
    if not is_adapter(source):
        raise UsageError(
            f"{source} is not the folder of a gated adapter; expected one that `multitoken adapt --masks noise` wrote"
        )
    settings, mtp = read_adapter_config(source)
    state = load_file(source / WEIGHTS)
    if MASK_VECTOR in state:
        raise UsageError(
            f"{source} was trained with a mask vector, which the UNO format cannot hold; adapt with --masks noise (masks='noise')"
        )
    _check_layers(settings["target_modules"])
    with atomic_folder(output, overwrite=overwrite) as folder:
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        plain = {name: value for name, value in settings.items() if name != "mtp"}
        write_json(folder / CONFIG, plain | {"base_model_name_or_path": mtp.base_name})
    return (
        f"python -m sglang.launch_server --model-path {mtp.base_name} --speculative-algorithm UNO "
        f"--uno-lora-path {output} --speculative-num-draft-tokens {min(8, mtp.k)}"
    )


def adopt_uno(source: str | Path, output: str | Path, *, base: str, overwrite: bool = False) -> Path:
    """Write an UNO adapter, a folder or a Hub name, as a gated adapter, which every command accepts. base: the folder or Hub name
    of its model. Returns `output`. Raises as `load_causal_lm` and `save_adapter` do."""
    check_output(output, overwrite=overwrite)
    loaded = load_causal_lm(source, base=base, uno=True, device="cpu")
    assert loaded.adapter is not None and loaded.mtp is not None
    save_adapter(loaded.adapter, loaded.tokenizer, loaded.mtp, output, base=base, overwrite=overwrite)
    return Path(output)


def _check_layers(names: list[str]) -> None:
    """Raise `UsageError` for layers that SGLang's loader cannot join."""
    present = set(names)
    for name in names:
        stem, _, leaf = name.rpartition(".")
        if leaf in ("k_proj", "v_proj") and f"{stem}.q_proj" not in present:
            raise UsageError(
                f"the adapter updates {name} without {stem}.q_proj, which SGLang joins it with; adapt with layers that include q_proj"
            )
