"""Evaluation from Python: what `multitoken evaluate` and `multitoken calibrate` do, in one call each.

With several processes (`torchrun -m multitoken.cli evaluate ...`) each process answers its share of the questions. Only the first
process prints messages and writes files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitoken.errors import UsageError
from multitoken.processes import Processes, console_of

if TYPE_CHECKING:
    from rich.console import Console

    from multitoken.decoding import Policy
    from multitoken.evaluation.calibration import Calibration
    from multitoken.evaluation.rows import Row
    from multitoken.evaluation.tasks import Task
    from multitoken.models.model import Model


def evaluate(
    model: "Model",
    task: "Task | str | Path",
    *,
    original: "Model | None" = None,
    others: "Mapping[str, Model] | None" = None,
    policies: "Sequence[Policy | str] | None" = None,
    prompts: int | None = None,
    grader: str | None = None,
    max_new_tokens: int = 256,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
    batch_size: int = 1,
    output: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    console: "Console | None" = None,
    verbose: bool = True,
) -> "list[Row]":
    """Measure `model` under several policies: accuracy, speed, and how many outputs are identical to those of `original`.

    Returns one row per model and policy.

    task: a JSONL file of prompts and answers, the name of an embedded task, or a `Task`. policies: policies or their short forms
    ("exact:0.5"). others: further models, by the names that their rows get. prompts: the number of questions (embedded tasks: 100
    if not given). batch_size: the number of questions answered at the same time. More is faster; 1 measures the speed that a
    single user sees. output: a folder for results.json, tradeoff.png, report.html and answers.jsonl. With `resume`, an
    interrupted measurement continues from its answers.jsonl. Raises `UsageError`, `DataError` and `OutputError`, before anything
    is decoded.
    """
    from multitoken.evaluation.journal import journal_of, prepare_output
    from multitoken.evaluation.measure import DEFAULT_POLICIES, label_of, measure, of_type, parse_policy, publish
    from multitoken.evaluation.run import checked
    from multitoken.evaluation.sampled import in_words, sampling_of
    from multitoken.evaluation.samples import samples_of

    sampling = sampling_of(temperature, top_p, top_k, seed)
    models = {"original": original} if original is not None else {}
    models["adapted"] = model
    for name, other in (others or {}).items():
        if name in models:
            raise UsageError(f"two models are named {name!r}; name each one differently")
        models[name] = other
    most = min((each.mtp.k for each in models.values() if each.mtp is not None), default=1)
    usual = [each for each in DEFAULT_POLICIES if each.k is None or each.k <= most]
    chosen = [parse_policy(each) if isinstance(each, str) else each for each in policies or usual]
    folder = None if output is None else Path(output)
    questions = task_of(task, prompts, grader, max_new_tokens)
    checked(models, questions, {label_of(each): each for each in chosen}, batch_size=batch_size)
    prepare_output(folder, overwrite=overwrite, resume=resume)
    console = console_of(console, verbose)
    journal = journal_of(folder, questions, models, sampling=in_words(sampling), batch_size=batch_size)
    rows = measure(models, questions, chosen, console, sampling, batch_size=batch_size, journal=journal)
    if folder is not None and Processes.here().first:
        against = f", against {original.name}" if original is not None else ""
        how = f", {in_words(sampling)}" if sampling else ""
        publish(
            folder,
            rows,
            console,
            title=f"{model.name} on {questions.name}{how}",
            summary=f"{len(questions.questions)} questions of {questions.name}{against}{how}{of_type(models)}.",
            race=samples_of(models, questions, {label_of(p): p for p in chosen}, journal, sampling) if journal else (),
        )
    return rows


def task_of(task: Any, prompts: int | None, grader: str | None, max_new_tokens: int, usual: int = 100) -> "Task":
    """The `Task` itself if one is given; otherwise the task read from a JSONL file, or the embedded task of that name. usual: the
    number of questions of an embedded task if `prompts` is None."""
    from multitoken.evaluation.tasks import Task, load_task
    from multitoken.quickstart.embedded import embedded_task

    if isinstance(task, Task):
        return task
    name = str(task)
    if name.endswith((".jsonl", ".json")) or Path(name).is_file():
        return load_task(name, prompts, grader=grader, max_new_tokens=max_new_tokens)
    if grader is not None:
        raise UsageError(f"grader {grader!r} is for JSONL files; the task {name!r} has its own")
    return embedded_task(name, usual if prompts is None else prompts, max_new_tokens=max_new_tokens)


def calibrate(
    model: "Model | str | Path",
    task: "Task | str | Path",
    *,
    max_drop: float | None = None,
    min_identical: float | None = None,
    policy: str | None = None,
    thresholds: "Sequence[float] | None" = None,
    original: "Model | str | Path | None" = None,
    confidence: float = 0.95,
    prompts: int | None = None,
    grader: str | None = None,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    write: bool = True,
    output: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    console: "Console | None" = None,
    verbose: bool = True,
    **loading: Any,
) -> "Calibration":
    """Find the fastest policy, threshold and k for `model` whose loss stays within a limit, at the given confidence.

    max_drop: the accuracy that may be lost compared with `original` (0.01 is one point; needs answers to grade against).
    min_identical: the share of outputs that must be identical to the original's. If neither is given, only `policy="exact"` is
    allowed, which loses nothing. policy: "exact" or "confadapt", to allow only that one. thresholds: the thresholds to try; a
    dozen from 0.3 to 0.999 if not given. prompts: how many, half of them to confirm (embedded tasks: as many as the promise takes if
    no answer loses anything, and at least 100, if not given). original: needed unless the adapter acts at mask tokens only ("gated"): its original is
    the same model at one token per step. write: store the choice in the `generation_config.json` of a model given as a folder, so
    that everything that decodes the model uses it. output: a folder that stores the answers; with `resume`, an interrupted
    calibration continues from them. loading: options of `mt.load`, for models given as folders. Raises `UsageError`, `DataError`
    and `OutputError`, before anything is decoded.
    """
    from multitoken.checkpoints.save import store_decoding
    from multitoken.decoding.policies import ConfAdapt, Exact, as_options
    from multitoken.evaluation.calibration import (
        ORDER,
        Allowed,
        calibrate,
        candidates_of,
        check_calibration,
        check_models,
        usual_prompts,
    )
    from multitoken.evaluation.journal import check_answers, journal_of, prepare_output
    from multitoken.evaluation.measure import label_of
    from multitoken.models.model import Model
    from multitoken.progress import counting_bar

    kinds = {"exact": Exact, "confadapt": ConfAdapt}
    if policy is not None and policy not in kinds:
        raise UsageError(f"policy is {policy!r}; expected 'exact' or 'confadapt', or leave it out to try both")
    if max_drop is not None and min_identical is not None:
        raise UsageError("max_drop and min_identical are two ways to limit what may be lost; give one of them")
    if max_drop is None and min_identical is None and policy != "exact":
        raise UsageError(
            "say what may be lost: max_drop=0.01 (one point of accuracy) or min_identical=0.99; or policy='exact', which loses nothing"
        )
    if min_identical is not None and not 0 < min_identical < 1:
        raise UsageError(
            f"min_identical is {min_identical}; expected a share between 0 and 1, such as 0.99. policy='exact' loses nothing"
        )
    if min_identical is not None:
        allowed = Allowed("different", 1 - min_identical)
    else:
        allowed = Allowed("drop", max_drop) if max_drop is not None else None
    questions = task_of(task, prompts, grader, max_new_tokens, usual_prompts(allowed, confidence))
    tried_kinds = [kinds[policy]] if policy else list(kinds.values())
    # Both raise an error for bad values before anything is written or loaded.
    candidates_of(1, tried_kinds, thresholds)
    check_calibration(questions, allowed, confidence, batch_size)
    folder = None if isinstance(model, Model) else Path(model)
    if write and (folder is None or not folder.is_dir()):
        raise UsageError(f"{folder or model} is not a folder to write to; give a folder, or write=False")
    kept = None if output is None else Path(output)
    check_answers(kept, overwrite=overwrite, resume=resume)
    if not isinstance(model, Model):
        model = Model.load(model, **loading)
    elif loading:
        raise UsageError(f"{', '.join(loading)}: the model is already loaded; give its folder, or leave these out")
    if model.mtp is not None and model.mtp.method != "gated" and original is None:
        raise UsageError(
            f"this model's own weights were trained ({model.mtp.method}), so its loss is measured against the model it was made "
            "from: give that model as original (--original)"
        )
    if original is not None and not isinstance(original, Model):
        original = Model.load(original, **{name: value for name, value in loading.items() if name != "base"})
    models = {"original": original, "adapted": model} if original is not None else {"adapted": model}
    tried = {label_of(each): each for each in candidates_of(model.mtp.k if model.mtp else 1, tried_kinds, thresholds)}
    check_models(models, questions, tried)
    prepare_output(kept, overwrite=overwrite, resume=resume)
    journal = journal_of(kept, questions, models, order=ORDER, batch_size=batch_size)
    console = console_of(console, verbose)
    with counting_bar(console, f"answering {questions.name}") as progress:
        found = calibrate(
            models,
            questions,
            tried,
            allowed,
            confidence=confidence,
            batch_size=batch_size,
            journal=journal,
            progress=progress,
        )
    if found.chosen is not None and write and folder is not None and Processes.here().first:
        store_decoding(folder, as_options(found.chosen.policy))
    return found
