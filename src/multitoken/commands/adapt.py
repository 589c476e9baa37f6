"""`multitoken adapt`: its options are the fields of `AdaptConfig`, and their docstrings are the help texts."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from multitoken.config import AdaptConfig, load_recipe, make_config

from .flags import long_names_as_flags
from .options import console_for, model_path


def adapt_command(**options: Any) -> None:
    """Adapt MODEL to write several tokens per forward pass and save it to --output."""
    dry_run = options.pop("dry_run", None)
    recipe = load_recipe(options.pop("config")) if options.get("config") else options.pop("config", None)
    config = make_config(recipe, **options)
    config = config.model_copy(update={"model": model_path(config.model, "base")})
    if dry_run:
        from multitoken.training.plan import plan, show

        show(plan(config, console_for()), config, console_for())
        return
    from multitoken.training.adapt import adapt

    done = adapt(config=config, console=console_for())
    console_for().print(
        f"Saved {done.output} after {done.steps} steps, {done.seconds / 60:.1f} minutes.\n"
        f"Try it:  multitoken generate {done.output} 'your prompt'"
    )


def _signature() -> inspect.Signature:
    """One option per field of `AdaptConfig`; the field's docstring is the option's help."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(
            "model", keyword, default=None, annotation=Annotated[str | None, typer.Argument(help=_help("model"))]
        ),
        inspect.Parameter(
            "config",
            keyword,
            default=None,
            annotation=Annotated[Path | None, typer.Option(help="A YAML file with any of these options.")],
        ),
    ]
    dry_run = typer.Option("--dry-run", help="Measure a few steps and print what the run would need; write nothing.")
    parameters.append(inspect.Parameter("dry_run", keyword, default=False, annotation=Annotated[bool, dry_run]))
    for name, field in AdaptConfig.model_fields.items():
        if name == "model":
            continue
        kind = _option_type(field.annotation)
        default = "" if field.is_required() else f" (default: {field.default})" if field.default is not None else ""
        option = typer.Option(help=_help(name) + default, show_default=False)
        parameters.append(inspect.Parameter(name, keyword, default=None, annotation=Annotated[kind | None, option]))
    return inspect.Signature(parameters)


def _help(name: str) -> str:
    flags = {name: f"--{name.replace('_', '-')}" for name in AdaptConfig.model_fields}
    return long_names_as_flags(AdaptConfig.model_fields[name].description or "", flags)


def _option_type(annotation: Any) -> Any:
    """bool, int and float are parsed by typer. All other types go as text to `AdaptConfig`, whose error messages are better."""
    plain = [t for t in (bool, int, float) if annotation is t or annotation == t | None]
    return plain[0] if plain else str


adapt_command.__signature__ = _signature()  # pyright: ignore[reportFunctionMemberAccess]
adapt_command.__annotations__ = {p.name: p.annotation for p in adapt_command.__signature__.parameters.values()}  # pyright: ignore[reportFunctionMemberAccess]
