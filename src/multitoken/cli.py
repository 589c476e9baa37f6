"""The command line: argv -> one call. Heavy imports wait until a command runs, so `--help` answers at once."""

import dataclasses
import inspect
import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.exceptions import TyperException

from multitoken.config import AdaptConfig, load_recipe, make_config
from multitoken.errors import MultitokenError, UsageError

app = typer.Typer(
    name="multitoken",
    help="Make the language model you already run answer several times faster.",
    epilog="Add --debug anywhere to see the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C ended
_POLICY_HELP = "next-token, static, confadapt or exact"
BaseOption = Annotated[
    str | None, typer.Option(help="Where the model of a gated adapter lies, if not where the adapter says.")
]
DeviceOption = Annotated[
    str, typer.Option(help="auto (an accelerator if there is one), cpu, cuda, cuda:N, mps or xpu.")
]
DtypeOption = Annotated[
    str, typer.Option(help="auto (the model's own; float32 on a CPU), float32, bfloat16 or float16.")
]
DeviceMapOption = Annotated[
    str | None, typer.Option(help="auto: spread the model over all devices and memory (accelerate).")
]
TrustFlag = Annotated[bool, typer.Option(help="Run the modelling code that comes with the checkpoint.")]
JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line; the rest goes to stderr.")
]


def _console(json_output: bool = False) -> Console:
    return Console(stderr=json_output)


def _adapt(**options: Any) -> None:
    """Adapt MODEL to several tokens a pass and save it to --output."""
    dry_run = options.pop("dry_run", None)
    recipe = load_recipe(options.pop("config")) if options.get("config") else options.pop("config", None)
    config = make_config(recipe, **options)
    if dry_run:
        from multitoken.training.plan import plan, show

        show(plan(config, _console()), config, _console())
        return
    from multitoken.training.adapt import adapt

    done = adapt(config=config, console=_console())
    _console().print(
        f"Saved {done.output} after {done.steps} steps, {done.seconds / 60:.1f} minutes.\n"
        f"Try it:  multitoken generate {done.output} 'your prompt'"
    )


def _adapt_signature() -> inspect.Signature:
    """One option a field of `AdaptConfig`: the field's sentence is its help."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(
            "model", keyword, default=None, annotation=Annotated[str | None, typer.Argument(help=_help("model"))]
        ),
        inspect.Parameter(
            "config",
            keyword,
            default=None,
            annotation=Annotated[Path | None, typer.Option(help="A YAML file that holds any of these options.")],
        ),
    ]
    dry_run = typer.Option("--dry-run", help="Measure a few steps and say what the run would take; write nothing.")
    parameters.append(inspect.Parameter("dry_run", keyword, default=False, annotation=Annotated[bool, dry_run]))
    for name, field in AdaptConfig.model_fields.items():
        if name == "model":
            continue
        kind = _option_type(field.annotation)
        default = "" if field.is_required() else f" [default: {field.default}]" if field.default is not None else ""
        option = typer.Option(help=(field.description or "") + default, show_default=False)
        parameters.append(inspect.Parameter(name, keyword, default=None, annotation=Annotated[kind | None, option]))
    return inspect.Signature(parameters)


def _help(name: str) -> str:
    return AdaptConfig.model_fields[name].description or ""


def _option_type(annotation: Any) -> Any:
    """bool, int and float are parsed here; all else goes as text to `AdaptConfig`, which checks it in better words."""
    plain = [t for t in (bool, int, float) if annotation is t or annotation == t | None]
    return plain[0] if plain else str


_adapt.__signature__ = _adapt_signature()  # pyright: ignore[reportFunctionMemberAccess]
_adapt.__annotations__ = {p.name: p.annotation for p in _adapt.__signature__.parameters.values()}  # pyright: ignore[reportFunctionMemberAccess]
app.command("adapt", no_args_is_help=True)(_adapt)


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="A folder or Hub name, adapted or not; 'demo' is the embedded one.")],
    prompt: Annotated[str, typer.Argument(help="The prompt; '-' reads it from standard input.")],
    policy: Annotated[
        str | None, typer.Option(help=f"{_POLICY_HELP}. Adapted models: exact, others: next-token.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Confidence from 0 to 1 that a token must reach.")] = None,
    k: Annotated[int | None, typer.Option(help="Most tokens a step; at most what the model was trained for.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of the answer.")] = 256,
    temperature: Annotated[float | None, typer.Option(help="Sample at this temperature; greedy if not given.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest tokens of this share.")] = None,
    seed: Annotated[int | None, typer.Option(help="Sample with this seed: one seed, one text.")] = None,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    device_map: DeviceMapOption = None,
    trust_remote_code: TrustFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Answer PROMPT with MODEL, streaming each chunk in its own colour."""
    import time

    from multitoken.decoding import make_policy
    from multitoken.models.model import Generation, Model

    if policy is None and (threshold is not None or k is not None):
        raise UsageError("--threshold and --k belong to a policy; add --policy exact, for example")
    chosen = make_policy(policy, threshold=threshold, k=k) if policy else None
    text = sys.stdin.read() if prompt == "-" else prompt
    how = {"device": device, "dtype": dtype, "device_map": device_map, "trust_remote_code": trust_remote_code}
    loaded = Model.load(_model_path(model), base=base, **how)
    console = _console(json_output)
    colours = ("cyan", "yellow", "green", "magenta")
    started = time.perf_counter()
    chunks = []
    # One answer is too short to measure the machine for.
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "adaptive": False}
    sampling = {"temperature": temperature, "top_p": top_p, "seed": seed}
    options |= {name: value for name, value in sampling.items() if value is not None}
    for i, chunk in enumerate(loaded.stream(text, policy=chosen, **options)):
        chunks.append(chunk)
        console.print(chunk.text, style=colours[i % 4], end="", markup=False, highlight=False, soft_wrap=True)
    answer = Generation.of(chunks, time.perf_counter() - started)
    console.print(
        f"\n[dim]{len(answer.token_ids)} tokens in {answer.forward_passes} forward passes, "
        f"{answer.tokens_per_step:.2f} tokens per step, {answer.seconds:.2f} s[/dim]"
    )
    if json_output:
        _print_json(
            {
                "text": answer.text,
                "token_ids": list(answer.token_ids),
                "chunk_sizes": [len(c.token_ids) for c in chunks],
                "forward_passes": answer.forward_passes,
                "tokens_per_step": answer.tokens_per_step,
                "seconds": answer.seconds,
            }
        )


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="A folder or Hub name, adapted or not; 'demo' is the embedded one.")],
    policy: Annotated[
        str | None, typer.Option(help=f"{_POLICY_HELP}. Adapted models: exact, others: next-token.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Confidence from 0 to 1 that a token must reach.")] = None,
    k: Annotated[int | None, typer.Option(help="Most tokens a step; at most what the model was trained for.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 512,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustFlag = False,
) -> None:
    """Talk with MODEL in the terminal; /help there tells what one can change on the way."""
    from multitoken.decoding import make_policy
    from multitoken.models.model import Model
    from multitoken.serving.terminal import Chat

    if policy is None and (threshold is not None or k is not None):
        raise UsageError("--threshold and --k belong to a policy; add --policy exact, for example")
    chosen = make_policy(policy, threshold=threshold, k=k) if policy else None
    loaded = Model.load(_model_path(model), device=device, dtype=dtype, trust_remote_code=trust_remote_code, base=base)
    Chat(loaded, _console(), policy=chosen, max_new_tokens=max_new_tokens).run()


@app.command("serve")
def serve_command(
    model: Annotated[str, typer.Argument(help="A folder or Hub name, adapted or not; 'demo' is the embedded one.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 127.0.0.1 is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes any that is free.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="MULTITOKEN_API_KEY", help="Key that every request must bring.")
    ] = None,
    served_name: Annotated[str | None, typer.Option(help="The model's name in the API; MODEL if not given.")] = None,
    policy: Annotated[str | None, typer.Option(help=f"Of requests that name none: {_POLICY_HELP}.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Confidence from 0 to 1 that a token must reach.")] = None,
    k: Annotated[int | None, typer.Option(help="Most tokens a step; at most what the model was trained for.")] = None,
    max_rows: Annotated[int, typer.Option(help="Answers that are written side by side.")] = 32,
    queue: Annotated[int, typer.Option(help="Answers that may wait besides; more get a 429.")] = 128,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 1024,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 600.0,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="A site whose pages may call the API from a browser; repeatable.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="multitoken, or vllm: hand over to `vllm serve` with the plugin.")
    ] = "multitoken",
    base: BaseOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustFlag = False,
) -> None:
    """Serve MODEL with an OpenAI-compatible API, and a page at / that shows what multi-token decoding is."""
    from multitoken.decoding import make_policy
    from multitoken.models.model import Model

    try:
        from multitoken.serving import run
        from multitoken.serving.handover import serve_with_vllm
        from multitoken.serving.options import ServeOptions
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed; the server needs it: pip install 'multitoken[serve]'"
        ) from error
    if policy is None and (threshold is not None or k is not None):
        raise UsageError("--threshold and --k belong to a policy; add --policy exact, for example")
    if engine not in ("multitoken", "vllm"):
        raise UsageError(f"engine is {engine!r}; expected multitoken or vllm")
    options = ServeOptions(
        name=served_name or model,
        host=host,
        port=port,
        policy=make_policy(policy, threshold=threshold, k=k) if policy else None,
        api_key=api_key,
        max_rows=max_rows,
        queue=queue,
        max_tokens=max_tokens,
        timeout=timeout,
        origins=tuple(cors_origin or ()),
    )
    if engine == "vllm":
        serve_with_vllm(_model_path(model), options, trust_remote_code=trust_remote_code)
    loaded = Model.load(_model_path(model), device=device, dtype=dtype, trust_remote_code=trust_remote_code, base=base)
    run.serve(loaded, options, _console())


@app.command("evaluate")
def evaluate_command(
    model: Annotated[str, typer.Argument(help="The model to measure; 'demo' is the embedded adapted one.")],
    output: Annotated[Path, typer.Option(help="Folder for results.json, tradeoff.png and report.html.")],
    task: Annotated[str, typer.Option(help="An embedded task (word-problems, letters, ...) or a JSONL file.")],
    original: Annotated[str | None, typer.Option(help="The model it was made from, to compare with.")] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="NAME[:THRESHOLD or K], repeatable: exact:0.5, confadapt:0.9, static:3."),
    ] = None,
    prompts: Annotated[int | None, typer.Option(help="How many questions (embedded tasks: 100 if not given).")] = None,
    grader: Annotated[str | None, typer.Option(help="last-number, exact, contains or none (JSONL files).")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 256,
    temperature: Annotated[
        float | None, typer.Option(help="Sample at this temperature; greedy if not given, or 0.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest tokens of this share.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among so many of the likeliest tokens.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the first question's noise (0 if not given); each next one's is one more.")
    ] = None,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    device_map: DeviceMapOption = None,
    trust_remote_code: TrustFlag = False,
    overwrite: Annotated[bool, typer.Option(help="Replace what the output folder holds.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Measure accuracy, sameness and speed of MODEL under several policies, against --original."""
    from multitoken.checkpoints.atomic import check_output
    from multitoken.evaluation.measure import DEFAULT_POLICIES, measure, of_type, parse_policy, publish
    from multitoken.evaluation.sampled import in_words, sampling_of
    from multitoken.models.model import Model

    sampling = sampling_of(temperature, top_p, top_k, seed)
    policies = [parse_policy(text) for text in policy] if policy else DEFAULT_POLICIES
    check_output(output, overwrite=overwrite)
    questions = _task(task, prompts, grader, max_new_tokens)
    models = {}
    how = {"device": device, "dtype": dtype, "device_map": device_map, "trust_remote_code": trust_remote_code}
    for label, name in (("original", original), ("adapted", model)):
        if name is not None:
            path = _model_path(name, "base" if label == "original" else "gated")
            where = base if label == "adapted" else None
            models[label] = Model.load(path, base=where, **how)
    console = _console(json_output)
    rows = measure(models, questions, policies, console, sampling)
    against = f", against {models['original'].name}" if original else ""
    how = f", {in_words(sampling)}" if sampling else ""
    facts = publish(
        output,
        rows,
        console,
        title=f"{models['adapted'].name} on {questions.name}{how}",
        summary=f"{len(questions.questions)} questions of {questions.name}{against}{how}{of_type(models)}.",
    )
    if json_output:
        _print_json({"provenance": facts, "rows": [dataclasses.asdict(row) for row in rows]})


def _task(name: str, prompts: int | None, grader: str | None, max_new_tokens: int) -> Any:
    """A JSONL file's questions, or an embedded task's."""
    from multitoken.evaluation.tasks import load_task
    from multitoken.quickstart.embedded import embedded_task

    if name.endswith((".jsonl", ".json")) or Path(name).exists():
        return load_task(name, prompts, grader=grader, max_new_tokens=max_new_tokens)
    if grader is not None:
        raise UsageError(f"--grader {grader!r} is for JSONL files; the task {name!r} has its own")
    return embedded_task(name, 100 if prompts is None else prompts, max_new_tokens=max_new_tokens)


@app.command("estimate")
def estimate_command(
    model: Annotated[str, typer.Argument(help="The model to adapt, not adapted yet; 'demo' is the embedded one.")],
    data: Annotated[str, typer.Option(help="Prompts like those it will answer: the same sources as adapt's --data.")],
    prompts: Annotated[int, typer.Option(min=1, help="How many of them to draw.")] = 64,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of a response.")] = 256,
    k_max: Annotated[int, typer.Option(help="The longest block that it would be adapted to.")] = 16,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    device_map: DeviceMapOption = None,
    trust_remote_code: TrustFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Foretell, before any training, what adapting MODEL would gain on prompts like these, and how sure that is."""
    from multitoken.checkpoints.provenance import provenance
    from multitoken.evaluation.estimate_run import (
        estimate_gain,
        estimate_table,
        in_words,
        load_original,
        room_for_prompt,
    )
    from multitoken.training.prompt_sample import sample_prompts

    how = {"device": device, "dtype": dtype, "device_map": device_map, "trust_remote_code": trust_remote_code}
    loaded = load_original(_model_path(model, "base"), **how)
    sample = sample_prompts(data, loaded.tokenizer, prompts, longest=room_for_prompt(loaded, max_new_tokens))
    console = _console(json_output)
    console.print(f"Data: {sample}.")
    found = estimate_gain(loaded, sample.prompts, console, k=k_max, max_new_tokens=max_new_tokens)
    console.print(estimate_table(found))
    console.print(in_words(found), markup=False, highlight=False)
    if json_output:
        drawn = {"records": sample.records, "dropped_too_long": sample.too_long}
        _print_json({"provenance": provenance(), **dataclasses.asdict(found), **drawn})


@app.command("export")
def export_command(
    checkpoint: Annotated[str, typer.Argument(help="A folder that adapt wrote; 'demo' is the embedded one.")],
    output: Annotated[Path, typer.Argument(help="The folder to write.")],
    policy: Annotated[
        str | None,
        typer.Option(
            help=f"How it decodes unless a call says otherwise: {_POLICY_HELP}. If not given: as the checkpoint does."
        ),
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Confidence from 0 to 1 that a token must reach.")] = None,
    k: Annotated[int | None, typer.Option(help="Most tokens a step; at most what the model was trained for.")] = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="A gated adapter alone, which names its base on the Hub.")
    ] = False,
    base: BaseOption = None,
    evaluation: Annotated[Path | None, typer.Option(help="A folder that evaluate wrote, for the model card.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Store the weights in bfloat16, float16 or float32; as they are, if not given.")
    ] = None,
    push_to_hub: Annotated[str | None, typer.Option(help="Upload the folder to this repository on the Hub.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what the output folder holds.")] = False,
) -> None:
    """Write CHECKPOINT to the folder OUTPUT as plain transformers load it, with the code that decodes it and a card."""
    from multitoken.checkpoints.export import export
    from multitoken.decoding import make_policy

    is_given = policy is not None or threshold is not None or k is not None
    export(
        _model_path(checkpoint),
        output,
        policy=make_policy(policy or "exact", threshold=threshold, k=k) if is_given else None,
        base=base,
        reference=reference,
        evaluation=evaluation,
        dtype=dtype,
        overwrite=overwrite,
        push_to_hub=push_to_hub,
    )
    console = _console()
    console.print(f"Exported {output}; its card is {output / 'README.md'}", markup=False, soft_wrap=True)
    if push_to_hub is not None:
        console.print(f"Pushed to https://huggingface.co/{push_to_hub}", markup=False, soft_wrap=True)


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="A folder or Hub name; 'demo' is the embedded one.")],
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="From the config alone: random weights, few layers, no download.")
    ] = False,
    base: BaseOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Test what MODEL can be used for: trained, decoded, exact, batched, sampled, gated, exported. Exit code 1 if it would be
    wrong in any."""
    from multitoken.models.check import check_model, uses
    from multitoken.models.loading import load_causal_lm, load_config
    from multitoken.models.random_weights import random_model

    path, mask_id = _model_path(model, "base"), None
    if random_weights:
        config, name = load_config(path, trust_remote_code=trust_remote_code)
        tested = random_model(config, trust_remote_code=trust_remote_code)
        how = f"random weights, {tested.config.get_text_config().num_hidden_layers} of its layers"
    else:
        loaded = load_causal_lm(path, device=device, dtype=dtype, trust_remote_code=trust_remote_code, base=base)
        tested, name, mask_id = loaded.model, loaded.name, loaded.mtp and loaded.mtp.mask_token_id
        if loaded.adapter is not None:
            raise UsageError(
                f"{name} has a gate already; check the model it was made from, with a gate of the test's own"
            )
        how = "its own weights"
    vocabulary: int = tested.config.get_text_config().vocab_size
    findings = check_model(tested, vocabulary - 1 if mask_id is None else mask_id)
    console = _console(json_output)
    console.print(f"{name}: {type(tested).__name__}, {how}, {str(tested.dtype).removeprefix('torch.')}", soft_wrap=True)
    for found in findings:
        mark = "FAIL" if not found.passed else "note" if found.note else "ok"
        console.print(f"  {mark:<4} {found.test:<46} {found.shown:>9}  {found.note}", markup=False, soft_wrap=True)
    can = dict(uses(findings))
    console.print("  " + ", ".join(f"{use}: {'yes' if yes else 'NO'}" for use, yes in can.items()), soft_wrap=True)
    if json_output:
        _print_json({"model": name, "uses": can, "tests": [dataclasses.asdict(found) for found in findings]})
    if not all(can.values()):
        raise typer.Exit(1)


@app.command()
def demo(
    fast: Annotated[bool, typer.Option("--fast", help="Use the embedded adapter: under a minute.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the report, the picture and the numbers.")] = Path(
        "demo-output"
    ),
    minutes: Annotated[float | None, typer.Option(help="Minutes of training.")] = None,
    questions: Annotated[int | None, typer.Option(help="Questions to each model under each policy.")] = None,
) -> None:
    """Watch an ordinary model become a multi-token model, with honest numbers and a picture."""
    from multitoken.quickstart.demo import QUESTIONS_OF_A_FAST_ONE, DemoOptions, run_demo

    if fast and questions is None:
        questions = QUESTIONS_OF_A_FAST_ONE
    given = {"minutes": minutes, "questions": questions}
    run_demo(DemoOptions(output, fast, **{key: v for key, v in given.items() if v is not None}), _console())
    _console().print(f"See it in a browser:  multitoken serve {'demo' if fast else output / 'adapted'}", soft_wrap=True)


def _model_path(name: str, embedded: str = "gated") -> str:
    """A model's folder or name; "demo" stands for the embedded checkpoint."""
    if name != "demo":
        return name
    from multitoken.quickstart.embedded import checkpoint

    return str(checkpoint(embedded))


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


def main(argv: list[str] | None = None) -> None:
    """Run a command and exit: 0 done, 2 wrong usage, 1 any other error, 130 interrupted."""
    # transformers imports torchao wherever it is installed, which then tells of kernels for other machines.
    for talkative in ("torchao", "torch.utils._pytree"):
        logging.getLogger(talkative).setLevel(logging.ERROR)
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    sys.exit(_run(arguments, debug))


def _run(arguments: list[str], debug: bool) -> int:
    try:
        code = app(arguments, standalone_mode=False) or 0
    except TyperException as error:  # wrong words on the command line: typer says which
        show = getattr(error, "show", None)
        show() if show else print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except Exception as error:
        if debug:
            raise
        return _report(error)
    if code == _INTERRUPTED:
        print("Interrupted. An interrupted `multitoken adapt` continues with --resume.", file=sys.stderr)
    return code


def _report(error: Exception) -> int:
    """Print what went wrong, in the words of whoever raised it; a surprise is called one."""
    # DecodingError is a ValueError of the island `decoding`, told by its name so that torch need not be imported here.
    if isinstance(error, MultitokenError):
        code = error.exit_code
    elif type(error).__name__ == "DecodingError":
        code = 2
    elif isinstance(error, FloatingPointError | OSError):
        code = 1
    else:
        print(f"Unexpected {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
        return 1
    print(f"Error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
