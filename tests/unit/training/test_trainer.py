"""The trainer: accumulation equals one large batch, and a resumed run is bit-identical to one never interrupted."""

import json

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from multitoken.checkpoints.export import export
from multitoken.config import make_config
from multitoken.errors import DataError, OutOfMemoryError, OutputError, UsageError
from multitoken.models.loading import load_causal_lm
from multitoken.training import clock
from multitoken.training import setup as making_ready
from multitoken.training.activations import checkpointed
from multitoken.training.adapt import adapt
from multitoken.training.run_folder import last_complete_checkpoint
from multitoken.training.trainer import BlockTrainer
from tests.tiny import tiny_gpt2, tiny_tokenizer
from tests.unit.training.project import make_project, run
from tests.unit.training.weights import largest_difference, weights


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


def test_two_micro_batches_equal_one_batch(project) -> None:
    """Guards against a mean of means over unequal counts, which is another objective than the one asked for.

    Adam first divides by tiny second moments, so rounding causes differences of 1e-5 in a step of 1e-2.
    """
    run(project, "whole", batch_size=4)
    run(project, "halves", batch_size=2, gradient_accumulation=2)
    assert largest_difference(weights(project / "whole"), weights(project / "halves")) < 1e-4


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resume_is_bit_identical(project, monkeypatch, optimizer: str) -> None:
    """An interrupted run must end with exactly the weights of an uninterrupted one."""
    run(project, "whole", optimizer=optimizer)

    plain = BlockTrainer.compute_loss
    seen = []

    def killed(self, *args, **kwargs):
        seen.append(self.state.global_step)
        if len(seen) == 6:  # in step 5: checkpoint 4 is complete
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(BlockTrainer, "compute_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        run(project, "cut", optimizer=optimizer)
    monkeypatch.setattr(BlockTrainer, "compute_loss", plain)
    assert not (project / "cut").exists(), "nothing half-written where the model will be"

    with pytest.raises(OutputError, match="unfinished run; continue it with --resume"):
        run(project, "cut", optimizer=optimizer)
    with pytest.raises(UsageError, match=r"learning_rate was 0\.01, now 0\.02"):
        run(project, "cut", optimizer=optimizer, resume=True, learning_rate=2e-2)
    assert run(project, "cut", optimizer=optimizer, resume=True).steps == 6
    assert largest_difference(weights(project / "whole"), weights(project / "cut")) == 0.0
    assert not (project / "cut.training").exists()


def test_a_run_that_replaces_its_output_can_be_resumed(project, monkeypatch) -> None:
    """The output still exists when such a run is interrupted. It must neither stop --resume nor be replaced too early."""
    run(project, "out")
    before = weights(project / "out")
    plain = BlockTrainer.compute_loss

    def killed(self, *args, **kwargs):
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(BlockTrainer, "compute_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        run(project, "out", overwrite=True, seed=1)
    monkeypatch.setattr(BlockTrainer, "compute_loss", plain)
    assert largest_difference(before, weights(project / "out")) == 0.0
    assert run(project, "out", resume=True, seed=1).steps == 6
    assert largest_difference(before, weights(project / "out")) > 0.0


def test_a_run_of_minutes_survives_an_output_that_cannot_be_written(project, monkeypatch) -> None:
    """A run of minutes may end before its first checkpoint. If its model cannot be written, the training is not lost."""

    def filled(setup, adapted) -> None:
        raise OutputError("the disk is full")

    options = {"steps": None, "minutes": 0.01, "checkpoint_every": 10**6}
    with monkeypatch.context() as patch, pytest.raises(OutputError, match="the disk is full"):
        patch.setattr("multitoken.training.adapt._save", filled)
        run(project, "out", **options)
    trained = last_complete_checkpoint(project / "out.training")
    assert trained is not None
    done = run(project, "out", **options, resume=True)
    assert done.steps <= int(trained.name.removeprefix("checkpoint-")) + 1


def test_half_written_checkpoints_are_never_resumed_from(tmp_path) -> None:
    """The checkpoint with the highest number was being written when the machine went down."""
    for step, complete in ((2, True), (10, True), (12, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if complete:
            (folder / ".complete").touch()
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-12").exists()


def test_adapted_checkpoint_says_what_it_is_and_decodes(project) -> None:
    """The folder must be complete in itself: mask id, k, base, and a tokenizer that knows the mask token."""
    import multitoken as mt

    base = load_causal_lm(project / "base")
    done = run(project, "adapted")
    assert done.steps == 6 and len(done.log) > 0
    model = mt.load(project / "adapted")
    assert model.mtp is not None and (model.mtp.k, model.mtp.base_name, model.mtp.method) == (4, "base", "full")
    assert model.mtp.mask_token_id == 60, "the first padded row, which no token used"
    assert model.tokenizer.convert_tokens_to_ids("<MTP>") == 60
    assert largest_difference(dict(base.model.named_parameters()), dict(model.hf.named_parameters())) > 1e-4
    exact = model.generate("w7 w8", policy=mt.Exact(0.0), max_new_tokens=12)
    plain = model.generate("w7 w8", policy=mt.NextToken(), max_new_tokens=12)
    assert exact.token_ids == plain.token_ids
    with pytest.raises(mt.DecodingError, match="contains the mask token"):
        model.generate("w7 <MTP> w8")


def test_prompts_only_are_answered_by_the_original_model(project) -> None:
    """Missing responses are written by the teacher in batches, and equal what it writes for each prompt alone."""
    (project / "data.jsonl").write_text("".join(json.dumps({"prompt": f"w{4 + i} w{9 + i}"}) + "\n" for i in range(20)))
    written = {}
    plain = making_ready.prepare_samples

    def spy(*args, **kwargs):
        prepared = plain(*args, **kwargs)
        written.update({s.prompt_ids: s.response_ids for s in prepared.train + prepared.validation})
        return prepared

    making_ready.prepare_samples = spy
    try:
        run(project, "adapted", steps=1, max_new_tokens=10, responses="greedy")
    finally:
        making_ready.prepare_samples = plain
    base = load_causal_lm(project / "base").model
    assert len(written) == 20
    for prompt, response in list(written.items())[:5]:
        out = base.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            do_sample=False,
            max_new_tokens=10,
            suppress_tokens=[60],
        )
        assert tuple(out[0, len(prompt) :].tolist()) == response


def test_gradient_checkpointing_changes_nothing(project) -> None:
    """transformers checkpoints in training mode only. In eval mode it would be asked for and not happen."""
    recomputed = []
    plain = LlamaAttention.forward

    def count(self, *args, **kwargs):
        recomputed.append(torch.is_grad_enabled())
        return plain(self, *args, **kwargs)

    for method in ("full", "lora"):
        recomputed.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LlamaAttention, "forward", count)
            run(project, f"plain {method}", method=method, steps=2)
            once = sum(recomputed)
            recomputed.clear()
            run(project, f"again {method}", method=method, steps=2, gradient_checkpointing=True)
        assert sum(recomputed) == 2 * once
        assert largest_difference(weights(project / f"plain {method}"), weights(project / f"again {method}")) == 0.0


def test_gradient_checkpointing_is_refused_where_it_would_switch_on_dropout() -> None:
    """Proposals with dropout are not what decoding will see."""
    with pytest.raises(UsageError, match="would switch on dropout in OPTForCausalLM"):
        checkpointed(
            OPTForCausalLM(
                OPTConfig(
                    vocab_size=40, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, dropout=0.5
                )
            ).eval()
        )


def test_unseen_prompts_are_validated_on_while_training(project) -> None:
    """The log has a validation curve, and with `patience` the run ends when the curve no longer rises."""
    done = run(project, "adapted", steps=6, evaluate_every=2, validation_share=0.2)
    validations = [entry for entry in done.log if "eval_accepted" in entry]
    assert [entry["step"] for entry in validations] == [2, 4, 6]
    assert all(1.0 <= entry["eval_tokens_per_step_0.5"] <= 4.0 for entry in validations)
    assert all(0.0 <= entry["eval_agreement_1"] <= 1.0 for entry in validations)
    stopped = run(project, "stopped", steps=40, evaluate_every=2, validation_share=0.2, patience=2, learning_rate=1e-9)
    assert stopped.steps == 6, "the first validation sets the mark, two more do not better it"


def test_validations_come_by_the_share_of_the_run_unless_told_otherwise(project, monkeypatch) -> None:
    """A validation pass every 200 steps would never happen in a run of four minutes on a CPU. `affordable` is patched
    because steps as small as these take less time than a validation pass."""
    monkeypatch.setattr(clock, "affordable", lambda *_: True)
    done = run(project, "adapted", steps=20, validation_share=0.2)
    assert [entry["step"] for entry in done.log if "eval_accepted" in entry] == [*range(2, 20, 2)]


def test_drift_is_watched_and_held(project) -> None:
    """The weight of the next-token loss doubles after each validation that finds too much drift, and this limits the
    drift."""
    options = {"steps": 30, "validation_share": 0.3, "next_token_weight": 0.1, "learning_rate": 3e-3}
    free = run(project, "free", **options)
    held = run(project, "held", **options, max_drift=0.02)
    assert free.validation is not None and held.validation is not None
    assert free.validation.drift > 0.02, "or there is nothing to hold"
    assert held.validation.drift < free.validation.drift
    validations = [entry for entry in held.log if "eval_kept" in entry]
    weight = 0.1
    for found in validations:
        weight *= 2 if 1 - found["eval_kept"] > 0.02 else 1
        assert found["eval_next_token_weight"] == pytest.approx(weight)
    assert weight > 0.1


def test_a_resumed_run_keeps_its_next_token_weight(project, monkeypatch) -> None:
    """The weight is found during the run. If it started again at its first value, the second half would lose the next
    tokens that the first half had learned to keep."""
    options = {"steps": 6, "validation_share": 0.3, "next_token_weight": 0.1, "max_drift": 1e-4, "evaluate_every": 1}
    run(project, "whole", **options)
    plain, calls = BlockTrainer.compute_loss, []

    def killed(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 6:  # in step 5: checkpoint 4 is complete
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(BlockTrainer, "compute_loss", killed)
        with pytest.raises(KeyboardInterrupt):
            run(project, "cut", **options)
    resumed = run(project, "cut", **options, resume=True)
    assert largest_difference(weights(project / "whole"), weights(project / "cut")) == 0.0
    found = [entry["eval_next_token_weight"] for entry in resumed.log if "eval_next_token_weight" in entry]
    assert found[-1] > 0.1


@pytest.mark.parametrize("method", ["full", "lora", "gated"])
def test_the_best_threshold_is_stored_and_used(project, method: str) -> None:
    """A loaded checkpoint decodes at the threshold that its own training run found best, without further options."""
    import multitoken as mt

    done = run(project, "adapted", method=method, steps=2, validation_share=0.3)
    assert done.validation is not None
    stored = json.loads((project / "adapted" / "generation_config.json").read_text())["mtp"]
    assert stored == {"policy": "exact", "threshold": done.validation.threshold}
    model = mt.load(project / "adapted")
    assert model.default_policy == mt.Exact(done.validation.threshold)
    export(project / "adapted", project / "exported")
    exported = json.loads((project / "exported" / "generation_config.json").read_text())["mtp"]
    assert (exported["policy"], exported["threshold"]) == ("exact", done.validation.threshold)


def test_without_unseen_prompts_no_threshold_is_stored(project) -> None:
    import multitoken as mt

    run(project, "adapted", steps=2, validation_share=0.0)
    assert mt.load(project / "adapted").default_policy == mt.Exact()


def test_the_log_outlives_the_run_in_tensorboard(project) -> None:
    """The run's own folder is removed at the end, so the log is kept outside of it."""
    run(project, "adapted", steps=2, report_to="tensorboard")
    assert len(list((project / "adapted.logs").rglob("events.out.tfevents.*"))) == 1
    with pytest.raises(UsageError, match="report_to is 'tensorbord'"):
        run(project, "other", report_to="tensorbord")


def test_too_little_memory_says_what_to_lower(project, monkeypatch) -> None:
    """The error says which options to lower, and the run keeps the responses, which may have taken hours."""
    (project / "data.jsonl").write_text("".join(json.dumps({"prompt": f"w{4 + i} w{9 + i}"}) + "\n" for i in range(20)))

    def full(*args, **kwargs):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(BlockTrainer, "compute_loss", full)
        with pytest.raises(OutOfMemoryError, match=r"batch_size=4, blocks_per_row=3.*lower one of them"):
            run(project, "adapted", max_new_tokens=10)
    responses = project / "adapted.training" / "responses.jsonl"
    before = responses.read_text()
    monkeypatch.setattr(BlockTrainer, "compute_loss", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(project, "adapted", max_new_tokens=10, batch_size=2, overwrite=True)
    assert responses.read_text() == before


def test_an_exploding_loss_is_an_error_with_a_mend(project) -> None:
    """Without this error, a run whose loss is not a number would silently go on to the end."""
    with pytest.raises(
        FloatingPointError, match=r"at step \d+; lower --learning-rate.*state is kept in .*checkpoint-1"
    ):
        run(project, "adapted", learning_rate=1e30, steps=20, checkpoint_every=1)


def test_options_of_every_objective_run(project) -> None:
    """Each advertised option must work in a run: without one it is a promise that nobody has checked."""
    for i, options in enumerate(
        (
            {"teacher": "soft", "loss_until": "first-disagreement"},
            {"labels": "data", "k_schedule": "fixed"},
            {"next_token_weight": 0.5, "train_on": "all", "dtype": "bfloat16"},
            {"pack": True, "next_token_weight": 0.5},
            {"pack": True, "method": "gated"},
            {"loss_weights": "reach", "optimizer": "muon"},
        )
    ):
        assert run(project, f"run{i}", steps=2, **options).steps == 2


def test_defaults_are_those_of_the_recommended_method(project) -> None:
    """The README promises that `multitoken adapt` without options is the gated recipe that the ablation chose."""
    config = make_config(model="m", data="d", output="o")
    assert (config.method, config.optimizer, config.next_token_weight) == ("gated", "muon", 0.0)
    assert (config.labels, config.loss_weights) == ("auto", "reach")
    for method in ("full", "lora"):
        other = make_config(model="m", data="d", output="o", method=method)
        assert other.next_token_weight > 0, "else the next tokens are lost"
    options = {"method": "gated", "labels": "auto", "optimizer": None, "learning_rate": None, "loss_weights": "reach"}
    assert run(project, "adapted", steps=2, **options).steps == 2


def test_samples_leave_room_for_blocks_in_learned_position_tables(project) -> None:
    """With an anchor near the last position, GPT-2 would crash or, worse, read past the end of its position table."""
    tokenizer = tiny_tokenizer()
    tiny_gpt2(tokenizer, n_positions=16).save_pretrained(project / "base")
    tokenizer.save_pretrained(project / "base")
    rows = [{"prompt": f"w{4 + i}", "response": " ".join(f"w{4 + (i + j) % 50}" for j in range(30))} for i in range(20)]
    (project / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(project, "adapted", steps=3).steps == 3
    with pytest.raises(UsageError, match="the model has 16 positions"):
        run(project, "other", steps=1, k_max=14)


def test_a_run_that_failed_early_does_not_stand_in_its_own_way(project) -> None:
    """After a typo in the data path, there must be no folder because of which the next try is refused."""
    with pytest.raises(DataError):
        adapt(model=project / "base", data=project / "nothing.jsonl", output=project / "adapted", steps=1)
    assert run(project, "adapted", steps=1).steps == 1
