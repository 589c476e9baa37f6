"""The options of an adaptation: which value overrides which, and clear messages for invalid values."""

import subprocess
import sys
import typing
from pathlib import Path

import pytest
from pydantic import ValidationError

from multitoken.config import DEFAULT_MINUTES, AdaptConfig, load_recipe, make_config
from multitoken.errors import UsageError

NEEDED = {"model": "m", "data": "d", "output": "o"}


def test_every_field_has_a_sentence():
    """The descriptions are the command line's help. A field without one is an option that nobody can understand."""
    for name, field in AdaptConfig.model_fields.items():
        assert field.description and field.description.endswith("."), name


def test_options_override_the_recipe_and_none_does_not():
    """The command line passes None for every flag that was not typed. None must not override the recipe."""
    config = make_config({**NEEDED, "k_max": 8, "seed": 3}, k_max=4, seed=None, model=Path("here"))
    assert (config.k_max, config.seed, config.model) == (4, 3, "here")


def test_zero_and_false_are_values():
    """`value or default` would turn a requested 0 into the default."""
    config = make_config({**NEEDED, "seed": 3, "overwrite": True, "warmup": 0.5}, seed=0, overwrite=False, warmup=0.0)
    assert (config.seed, config.overwrite, config.warmup) == (0, False, 0.0)


def test_length_is_minutes_or_steps():
    assert make_config(NEEDED).minutes == DEFAULT_MINUTES
    assert make_config(NEEDED, steps=7).minutes is None
    with pytest.raises(UsageError, match="give minutes or steps, not both: found minutes=1 and steps=2"):
        make_config(NEEDED, minutes=1, steps=2)


def test_steps_option_replaces_the_recipe_s_minutes():
    """A recipe with `minutes: 30` must be usable for a trial of 5 steps without editing it."""
    config = make_config({**NEEDED, "minutes": 30}, steps=5)
    assert (config.steps, config.minutes) == (5, None)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"k_max": 1}, r"k_max must be at least 2 .* found 1"),
        ({"k_maxx": 8}, r"unknown option 'k_maxx'; did you mean 'k_max'\?"),
        ({"teacher": "softt"}, "teacher is 'softt'; it should be 'hard' or 'soft'. The teacher's labels"),
        ({"learning_rate": 0}, "learning_rate is 0; it should be greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it should be a finite number"),
        ({"steps": 2.5}, "steps is 2.5; it should be a valid integer"),
        ({"warmup": 1.5}, "warmup is 1.5; it should be less than or equal to 1"),
        ({"device": "gpu"}, "device must be auto, cpu, .* found 'gpu'"),
        ({"resume": True, "overwrite": True}, "resume continues .* overwrite discards"),
        ({"temperature": 0.7, "responses": "greedy"}, "temperature=0.7 needs responses=sampled"),
        ({"teacher": "soft", "labels": "data"}, "teacher=soft needs labels=online"),
        ({"pack": True, "join_share": 0.5}, r"join_share=0\.5 .* pack .* give one of them"),
        ({"k_growth": 100}, "k_growth is 100; it should be less than or equal to 1. Share of the run"),
        (
            {"start_from": "a", "method": "lora"},
            "start_from=a continues an adapter, which only method=gated .* give it as the model",
        ),
        ({"max_drift": 0.02}, "max_drift needs method=full or lora"),
        ({"max_drift": 0.02, "method": "full", "validation_share": 0}, "max_drift .* needs a validation_share"),
    ],
)
def test_what_cannot_be_is_refused_in_plain_words(options: dict, complaint: str):
    """Pydantic's own report is about types and URLs. A user needs the field, the value and what was expected."""
    with pytest.raises(UsageError, match=complaint):
        make_config(NEEDED, **options)


def test_overwrite_never_removes_what_the_run_needs(tmp_path: Path):
    """An adapter written over its own base would name itself as its base, and the base would be gone."""
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "models" / "data.jsonl").touch()
    base, data = str(tmp_path / "models" / "base"), str(tmp_path / "models" / "data.jsonl")
    for output in (base, tmp_path / "models"):
        with pytest.raises(UsageError, match=f"overwrite would remove {base}, the model that the adapter needs"):
            make_config(model=base, data="d", output=output, overwrite=True)
    with pytest.raises(UsageError, match=f"overwrite would remove {data}, the training data"):
        make_config(model="m", data=data, output=tmp_path / "models", overwrite=True)
    assert make_config(model=base, data=data, output=tmp_path / "models" / "new", overwrite=True).overwrite
    assert make_config(model=base, data="d", output=base, overwrite=True, method="full").overwrite


def test_a_path_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch):
    """A shell leaves the ~ in --output=~/folder, and recipes hold it too. It would become a folder of that name."""
    monkeypatch.setenv("HOME", "/home/ada")
    config = make_config(model="~/model", data="~/data.jsonl", output="~/out", start_from="~/adapter")
    assert (config.model, config.data, config.start_from) == (
        "/home/ada/model",
        "/home/ada/data.jsonl",
        "/home/ada/adapter",
    )
    assert config.output == Path("/home/ada/out")


def test_missing_fields_are_all_named_at_once():
    with pytest.raises(UsageError) as caught:
        make_config(None, model="m")
    assert [line.split(".")[0] for line in str(caught.value).splitlines()] == ["data is missing", "output is missing"]


def test_config_cannot_be_changed_on_the_way():
    """The config is saved in the checkpoint as a record of the run, so nothing may change it after the checks."""
    with pytest.raises(ValidationError):
        make_config(NEEDED).k_max = 1  # type: ignore[misc]


def test_recipe_file(tmp_path: Path):
    """YAML 1.1 reads `2e-4` as a string: it must still arrive as a number."""
    path = tmp_path / "recipe.yaml"
    path.write_text("model: m\ndata: d\noutput: o\nlearning_rate: 2e-4\nsteps: 5\n")
    config = make_config(load_recipe(path))
    assert (config.learning_rate, config.steps, config.output) == (2e-4, 5, Path("o"))


def test_a_recipe_may_write_names_as_flags_do(tmp_path: Path):
    """The docs say that a recipe takes the same names as the options, and `--k-max` is what a user has typed before."""
    path = tmp_path / "recipe.yaml"
    path.write_text("k-max: 8\nbatch_size: 2\n")
    assert load_recipe(path) == {"k_max": 8, "batch_size": 2}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("k-maxx: 4\n", r"unknown option 'k-maxx'; did you mean 'k_max'\?"),
        ("k-max: 4\nk_max: 8\n", "has the option 'k_max' twice"),
        ("zzz: 4\n", "unknown option 'zzz'; valid: batch_size, "),
        ("3: 4\n", "unknown option 3"),
        ("- a\n", "holds a list; expected options as `name: value`"),
        ("", "holds nothing; expected options"),
        ("a: [\n", "is not valid YAML"),
        (b"\xff\xff", "cannot read recipe"),
    ],
)
def test_bad_recipes(tmp_path: Path, content: str | bytes, complaint: str):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=complaint):
        load_recipe(path)


def test_missing_recipe(tmp_path: Path):
    with pytest.raises(UsageError, match=r"cannot read recipe .*none.yaml"):
        load_recipe(tmp_path / "none.yaml")


def test_import_is_light():
    """`multitoken --help` imports this module. Importing torch alone would take seconds."""
    check = (
        "import sys, multitoken.config; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_keywords_of_adapt_are_the_config_s_fields() -> None:
    """An editor must offer every option with its type, and no other options."""
    from multitoken.adapt_options import AdaptOptions

    fields = {
        name: field for name, field in AdaptConfig.model_fields.items() if name not in ("model", "data", "output")
    }
    assert set(AdaptOptions.__annotations__) == set(fields)
    for name, field in fields.items():
        told = typing.get_type_hints(AdaptOptions, include_extras=True)[name]
        assert told == typing.get_type_hints(AdaptConfig, include_extras=True)[name], (name, field)
