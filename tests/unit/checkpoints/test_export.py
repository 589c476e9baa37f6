"""What an exported folder holds, and what is refused. (tests/e2e/test_export.py uses it.)"""

import dataclasses
import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import metadata_load
from safetensors.torch import load_file

import multitoken.decoding
from multitoken.checkpoints import export as export_module
from multitoken.checkpoints import hub
from multitoken.checkpoints.adapter import save_adapter
from multitoken.checkpoints.atomic import is_complete
from multitoken.checkpoints.export import export
from multitoken.checkpoints.save import save_checkpoint, store_decoding
from multitoken.decoding import ConfAdapt, DecodingError, Exact, NextToken, StaticK
from multitoken.decoding.gate import GatedAdapter, adaptable_layers
from multitoken.errors import DataError, ModelError, OutputError, UsageError
from multitoken.evaluation.results import write_results
from multitoken.evaluation.rows import Row
from multitoken.models.loading import load_causal_lm
from multitoken.models.mask_token import add_mask_token
from multitoken.models.model import Model
from multitoken.models.mtp_config import MtpConfig
from multitoken.models.weights import parameter_hash, weight_files, weight_hash
from tests.e2e.command import run
from tests.tiny import tiny_llama, tiny_tokenizer

IDS = torch.tensor([[5, 6, 7, 8]])
ROW = {
    "task": "sums",
    "prompts": 1500,
    "model": "adapted",
    "label": "Exact 0.5",
    "accuracy": 0.95,
    "accuracy_interval": [0.94, 0.96],
    "tokens_per_step": 3.25,
    "speedup": 2.5,
    "identical_to_original": 1499,
    "ties": 1,
}


@pytest.fixture(autouse=True)
def offline(monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def full(tmp_path) -> Path:
    """An ordinary checkpoint whose weights were adapted."""
    tokenizer = tiny_tokenizer(60)
    model = tiny_llama(tokenizer)
    before = parameter_hash(model)
    mask = add_mask_token(model, tokenizer)
    mtp = MtpConfig(
        k=4, mask_token_id=mask.id, mask_token=mask.token, method="full", base_name="me/b", base_hash=before
    )
    save_checkpoint(model, tokenizer, mtp, tmp_path / "full", extra_files={"adapt.json": "{}"}, max_shard_size="20KB")
    return tmp_path / "full"


@pytest.fixture
def gated(tmp_path) -> Path:
    """A gated adapter of the `base` next to it. The id of its mask token (60) is beyond the vocabulary."""
    tokenizer = tiny_tokenizer(60)
    model = tiny_llama(tokenizer)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<MTP>"]})
    adapter = GatedAdapter(model, mask_id=60, rank=2, layers=adaptable_layers(model))
    torch.nn.init.normal_(adapter.mask_vector)
    for update in adapter.updates:
        torch.nn.init.normal_(update.up)
    mtp = MtpConfig(
        k=4,
        mask_token_id=60,
        mask_token="<MTP>",
        method="gated",
        base_name="base",
        base_hash=weight_hash(weight_files(str(tmp_path / "base"))),
    )
    save_adapter(adapter, tokenizer, mtp, tmp_path / "gated", base=str(tmp_path / "base"))
    return tmp_path / "gated"


@pytest.fixture
def evaluation(tmp_path) -> Path:
    """A folder as `multitoken evaluate` writes it. The model card uses the same field names."""
    folder = tmp_path / "evaluation"
    folder.mkdir()
    unused = {field.name: None for field in dataclasses.fields(Row) if field.name not in ROW}
    record = {"command": "multitoken evaluate mine", "date": "2026-01-02T00:00:00"}
    write_results(folder / "results.json", [Row(**(unused | ROW))], record)
    (folder / "tradeoff.png").write_bytes(b"picture")
    return folder


def json_of(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_code_is_that_of_decoding(full, tmp_path) -> None:
    """Guards against a second copy of the decode loop that drifts from the first, and compiled files in an export."""
    export(full, tmp_path / "out")
    home = Path(multitoken.decoding.__file__).parent
    found = {path.name: path.read_bytes() for path in (tmp_path / "out" / "custom_generate").iterdir()}
    assert found.pop("requirements.txt") == b"transformers>=5.19\n"
    assert found == {path.name: path.read_bytes() for path in home.glob("*.py")} and "generate.py" in found


def test_weights_are_the_files_that_came_in(full, gated, tmp_path) -> None:
    """Guards against weights changed by loading and saving, and against missing shards."""
    export(full, tmp_path / "whole")
    shards = sorted(path.name for path in full.glob("*.safetensors*"))
    assert len(shards) > 2
    assert sorted(path.name for path in (tmp_path / "whole").glob("*.safetensors*")) == shards
    export(gated, tmp_path / "both")
    pairs = [(full / name, tmp_path / "whole" / name) for name in shards]
    pairs += [(gated / "adapter_model.safetensors", tmp_path / "both" / "mtp_adapter" / "adapter_model.safetensors")]
    pairs += [(tmp_path / "base" / "model.safetensors", tmp_path / "both" / "model.safetensors")]
    for before, after in pairs:
        assert before.read_bytes() == after.read_bytes(), after


def test_a_gated_export_loads_with_its_gate(gated, tmp_path) -> None:
    """Guards against a missing gate, refusing a mask id beyond the vocabulary, and a path of this machine in a file."""
    export(gated, tmp_path / "out")
    assert is_complete(tmp_path / "out")
    before, after = load_causal_lm(gated), load_causal_lm(tmp_path / "out")
    ids = torch.cat([IDS, torch.tensor([[60, 60]])], 1)
    assert torch.equal(before.model(ids).logits, after.model(ids).logits)
    assert after.mtp == before.mtp and after.adapter is not None and after.name == "out"
    texts = [
        path.read_text(encoding="utf-8") for path in (tmp_path / "out").rglob("*") if path.suffix in (".json", ".md")
    ]
    assert not [text for text in texts if str(tmp_path) in text or "../base" in text]


def test_vllms_own_drafter_finds_the_mask(full, gated, tmp_path) -> None:
    """The id of the mask token is in the config under the name that vLLM reads. A gated export does not have it: a
    drafter without the adapter would draft nonsense."""
    export(full, tmp_path / "whole")
    settings = json_of(tmp_path / "whole" / "config.json")
    assert settings["pard_token"] == settings["mtp"]["mask_token_id"]
    export(gated, tmp_path / "both")
    assert "pard_token" not in json_of(tmp_path / "both" / "config.json")


def test_an_export_of_an_export_is_the_same(gated, tmp_path) -> None:
    """Guards against an export that can be made again, with another policy, only while the first checkpoint is kept."""
    export(gated, tmp_path / "one")
    export(tmp_path / "one", tmp_path / "two", policy=NextToken())
    ids = torch.cat([IDS, torch.tensor([[60, 60]])], 1)
    one, two = (load_causal_lm(tmp_path / name).model(ids).logits for name in ("one", "two"))
    assert torch.equal(one, two)
    assert Model.load(tmp_path / "two").default_policy == NextToken()


def test_another_base_in_the_place_of_the_first(gated, tmp_path) -> None:
    """Guards against using an adapter with weights that it was not made for, before and after the export."""
    export(gated, tmp_path / "out")
    tiny_llama(tiny_tokenizer(60), seed=1).save_pretrained(tmp_path / "base")
    with pytest.raises(ModelError, match="was made for base with the weights"):
        export(gated, tmp_path / "again")
    (tmp_path / "out" / "model.safetensors").write_bytes((tmp_path / "base" / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match="out holds an adapter that was made for the weights"):
        load_causal_lm(tmp_path / "out")
    (tmp_path / "out" / "mtp_adapter" / "adapter_config.json").unlink()
    with pytest.raises(ModelError):
        load_causal_lm(tmp_path / "out")


def test_an_adapter_over_an_export_is_refused(gated, tmp_path) -> None:
    """Guards against two gates at the same time: drafts would be wrong, and decoding slow for no visible reason."""
    export(gated, tmp_path / "out")
    with pytest.raises(ModelError, match="holds an adapter of its own"):
        load_causal_lm(gated, base=tmp_path / "out")


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (None, {"policy": "exact", "threshold": 0.5}),
        (Exact(0.7, k=3), {"policy": "exact", "threshold": 0.7, "k": 3}),
        (ConfAdapt(0.9), {"policy": "confadapt", "threshold": 0.9}),
        (StaticK(2), {"policy": "static", "k": 2}),
        (StaticK(4), {"policy": "static", "k": 4}),
        (NextToken(), {"policy": "next-token"}),
    ],
)
def test_defaults_of_decoding_stand_in_the_generation_config(policy, says, full, tmp_path) -> None:
    """Guards against an `mtp` block that transformers drops when it reads the file, as it does with a config marked as
    derived, and against losing the base's own settings."""
    settings = json_of(full / "generation_config.json") | {"_from_model_config": True, "repetition_penalty": 1.1}
    (full / "generation_config.json").write_text(json.dumps(settings))
    export(full, tmp_path / "out", policy=policy)
    loaded = Model.load(tmp_path / "out")
    assert loaded.hf.generation_config is not None
    assert loaded.hf.generation_config.mtp == says
    assert loaded.hf.generation_config.repetition_penalty == 1.1 and loaded.hf.generation_config.eos_token_id == 2
    assert loaded.default_policy == (policy or Exact())


def test_no_generation_config(full, tmp_path) -> None:
    """Guards against losing the end-of-text token, which a generation config with our block alone would not have."""
    (full / "generation_config.json").unlink()
    export(full, tmp_path / "out")
    assert json_of(tmp_path / "out" / "generation_config.json")["eos_token_id"] == 2


def test_code_that_stays_behind_is_not_named(full, tmp_path) -> None:
    """Guards against trust_remote_code=True looking for modelling code that transformers does not need."""
    settings = json_of(full / "config.json") | {"auto_map": {"AutoConfig": "configuration_x.X"}}
    (full / "config.json").write_text(json.dumps(settings))
    export(full, tmp_path / "out")
    assert "auto_map" not in json_of(tmp_path / "out" / "config.json")


@pytest.mark.parametrize("kind", ["full", "gated"])
def test_another_dtype(kind, request, tmp_path) -> None:
    """Guards against a config that names another type than the file has, and against saving the gate into the base."""
    source = request.getfixturevalue(kind)
    export(source, tmp_path / "out", dtype="bfloat16")
    shards = weight_files(str(tmp_path / "out"))
    saved = {name: tensor for file in shards for name, tensor in load_file(file).items()}
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    if len(shards) > 1:
        index = json_of(tmp_path / "out" / "model.safetensors.index.json")
        assert index["metadata"]["total_size"] == 2 * sum(tensor.numel() for tensor in saved.values())
    assert json_of(tmp_path / "out" / "config.json")["dtype"] == "bfloat16"
    again, before = load_causal_lm(tmp_path / "out"), load_causal_lm(source)
    assert again.weight_hash == before.weight_hash and again.mtp == before.mtp


def test_the_card(gated, evaluation, tmp_path) -> None:
    """Guards against metadata that the Hub cannot read, a lost license, and numbers without their command."""
    (tmp_path / "base" / "README.md").write_text("---\nlicense: other\nlicense_name: its-own\n---\n# Base\n")
    (tmp_path / "base" / "LICENSE.txt").write_text("as it is")
    export(gated, tmp_path / "out", evaluation=evaluation, policy=Exact(0.7))
    found = metadata_load(tmp_path / "out" / "README.md")
    assert found["library_name"] == "transformers" and found["pipeline_tag"] == "text-generation"
    assert found["license"] == "other" and found["license_name"] == "its-own" and "custom_generate" in found["tags"]
    assert "base_model" not in found, "base is a folder's name"
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| adapted | Exact 0.5 | 95.0% (94.0–96.0) | 3.25 | 2.50× | 1,499 + 1 tied |" in card
    assert "```\nmultitoken evaluate mine\n```\n\n2026-01-02: versions unknown." in card and "`threshold` 0.7" in card
    assert "](evaluation/tradeoff.png)" in card
    assert (tmp_path / "out" / "evaluation" / "tradeoff.png").read_bytes() == b"picture"
    assert (tmp_path / "out" / "LICENSE.txt").read_text() == "as it is"


def test_the_card_of_a_model_from_the_hub(full, tmp_path) -> None:
    """Guards against an export that fails without a network because it looks for a license."""
    export(full, tmp_path / "out")
    found = metadata_load(tmp_path / "out" / "README.md")
    assert found["base_model"] == "me/b" and "license" not in found
    assert "Not yet. `multitoken evaluate out" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "adapt.json").is_file()
    assert json_of(tmp_path / "out" / "provenance.json")["adapted"] == json_of(full / "provenance.json")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"dtype": "int4"}, UsageError, "dtype is 'int4'; expected one of float32, bfloat16, float16"),
        ({"policy": Exact(k=9)}, DecodingError, "k is 9, but this model was trained for k up to 4"),
        ({"reference": True}, UsageError, r"--reference is for gated adapters; .* \(full\)"),
        ({"base": "me/b"}, UsageError, "is not an adapter; leave base out"),
        ({"push_to_hub": "me/b/c"}, UsageError, "push_to_hub is 'me/b/c'; expected a name on the Hub"),
        ({"push_to_hub": "mine"}, UsageError, "push_to_hub is 'mine'; expected a name on the Hub"),
        ({"evaluation": "nowhere"}, DataError, "nowhere has no results.json; expected the folder that"),
    ],
)
def test_options_that_cannot_be(options, error, says, full, tmp_path) -> None:
    """Guards against an option that is silently ignored, and against a folder left behind."""
    with pytest.raises(error, match=says):
        export(full, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "float16"}, "float16 would change the weights that the adapter was made for"),
        ({"reference": True, "dtype": "bfloat16"}, "dtype 'bfloat16' belongs to a model"),
        ({"reference": True, "policy": Exact()}, "policy Exact.* belongs to a model"),
        ({"reference": True}, "adapter of 'base', which is not a name on the Hub; --reference needs one"),
    ],
)
def test_options_that_no_gated_export_has(options, says, gated, tmp_path) -> None:
    """Guards against a reference to a base that nobody else can load."""
    with pytest.raises(UsageError, match=says):
        export(gated, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_sources_that_cannot_be(full, gated, tmp_path) -> None:
    """Guards against a KeyError for an ordinary model, a Hub name or an incomplete checkpoint."""
    with pytest.raises(ModelError, match=r"base was not adapted .* multitoken adapt"):
        export(tmp_path / "base", tmp_path / "out")
    with pytest.raises(ModelError, match="me/model is not a checkpoint; expected a folder"):
        export("me/model", tmp_path / "out")
    next(full.glob("*-00001-of-*")).unlink()
    with pytest.raises(ModelError, match=r"lacks model-00001-of-.* \(1 of 6 weight files\); copy the folder again"):
        export(full, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"rows": []}', "provenance"),
        ('{"rows": [], "provenance": {}}', "lacks rows; evaluate again"),
        (json.dumps({"rows": [{**ROW}, {"task": "sums"}], "provenance": {}}), r"lacks rows\[1\].prompts"),
    ],
)
def test_results_that_cannot_be(text, says, full, evaluation, tmp_path) -> None:
    """Guards against a card with half a table."""
    (evaluation / "results.json").write_text(text)
    with pytest.raises(DataError, match=says):
        export(full, tmp_path / "out", evaluation=evaluation)


def test_the_command_changes_the_stored_policy_only_where_asked(full, tmp_path) -> None:
    """Guards against a calibrated threshold that --k resets."""
    store_decoding(full, {"policy": "confadapt", "threshold": 0.97})
    assert run("export", full, tmp_path / "out", "--k", 3) == 0
    stored = json_of(tmp_path / "out" / "generation_config.json")["mtp"]
    assert stored == {"policy": "confadapt", "threshold": 0.97, "k": 3}


def test_an_output_in_use(full, tmp_path) -> None:
    """Guards against overwriting a folder without being asked, and against losing the previous export when a new one
    fails."""
    export(full, tmp_path / "out")
    with pytest.raises(OutputError, match="out exists and is not empty"):
        export(full, tmp_path / "out")
    export(full, tmp_path / "out", overwrite=True, policy=Exact(0.9))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(export_module, "model_card", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        export(full, tmp_path / "out", overwrite=True)
    assert json_of(tmp_path / "out" / "generation_config.json")["mtp"]["threshold"] == 0.9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "out"]


class FakeHub:
    """Records its calls. The upload raises `error` if it is set."""

    calls: list[tuple] = []  # noqa: RUF012
    error: Exception | None = None

    def create_repo(self, name, *, exist_ok):
        self.calls.append(("create_repo", name, exist_ok))
        return type("Url", (str,), {"repo_id": name})(f"https://huggingface.co/{name}")

    def upload_folder(self, *, repo_id, folder_path, commit_message, ignore_patterns):
        assert is_complete(folder_path), "only what is whole is uploaded"
        self.calls.append(("upload_folder", repo_id, Path(folder_path).name, ignore_patterns))
        if self.error is not None:
            raise self.error


@pytest.fixture
def fake_hub(monkeypatch) -> type[FakeHub]:
    monkeypatch.setattr(hub, "HfApi", FakeHub)
    monkeypatch.setattr(hub, "get_token", lambda: "a token")
    monkeypatch.setattr(FakeHub, "calls", [])
    return FakeHub


def test_push(full, fake_hub, tmp_path) -> None:
    """Guards against uploading an incomplete folder, and against a card that says to load a local folder name."""
    export(full, tmp_path / "out", push_to_hub="me/mine")
    assert fake_hub.calls == [
        ("create_repo", "me/mine", True),
        ("upload_folder", "me/mine", "out", [".complete"]),
    ]
    assert 'from_pretrained("me/mine"' in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_push_that_fails_keeps_the_folder(full, fake_hub, monkeypatch, tmp_path) -> None:
    """Guards against a traceback, and against losing an hour's export to a network error."""
    monkeypatch.setattr(fake_hub, "error", ConnectionError("no route\nto host"))
    with pytest.raises(
        OutputError, match=r"cannot push to me/mine: no route. .* is complete: push it again with `hf upload"
    ):
        export(full, tmp_path / "out", push_to_hub="me/mine")
    assert is_complete(tmp_path / "out")


def test_push_without_a_token(full, monkeypatch, tmp_path) -> None:
    """Guards against finding out only after the export."""
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(UsageError, match="there is no Hugging Face token here; log in with `hf auth login`"):
        export(full, tmp_path / "out", push_to_hub="me/mine")
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_found_in_the_home_folder(gated, tmp_path, monkeypatch) -> None:
    """Python and recipes do not expand a ~. An ordinary model was found there, and an adapter was not."""
    monkeypatch.setenv("HOME", str(tmp_path))
    loaded = load_causal_lm("~/gated", base="~/base")
    assert loaded.adapter is not None and loaded.name == "gated"
    export("~/gated", "~/out", base="~/base")
    assert is_complete(tmp_path / "out")
