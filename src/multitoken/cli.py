"""The command line: it parses argv and runs one command."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from multitoken import __version__
from multitoken.commands.adapt import adapt_command
from multitoken.commands.calibrate import calibrate_command
from multitoken.commands.check import check_command
from multitoken.commands.demo import demo_command
from multitoken.commands.evaluate import evaluate_command
from multitoken.commands.export import adopt_command, export_command
from multitoken.commands.flags import with_flags
from multitoken.commands.generate import chat_command, generate_command
from multitoken.commands.lm_eval import HARNESS_OPTIONS, lm_eval_command
from multitoken.commands.serve import serve_command
from multitoken.errors import MultitokenError

app = typer.Typer(
    name="multitoken",
    help="Make the language model you already run answer several times faster.",
    epilog="Add --debug anywhere to see the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("adapt", no_args_is_help=True)(adapt_command)
app.command("generate")(generate_command)
app.command("chat")(chat_command)
app.command("serve")(serve_command)
app.command("evaluate")(evaluate_command)
app.command("calibrate")(calibrate_command)
app.command("lm-eval", context_settings=HARNESS_OPTIONS)(lm_eval_command)
app.command("export")(export_command)
app.command("adopt")(adopt_command)
app.command("check")(check_command)
app.command("demo")(demo_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"multitoken {__version__}")
        raise typer.Exit


@app.callback()
def _options_of_all(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


_INTERRUPTED = 130  # the exit code that shells expect of a program that Ctrl-C ended


def main(argv: list[str] | None = None) -> None:
    """Run a command and exit: 0 done, 2 wrong usage, 1 any other error, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    sys.exit(_run(arguments, debug))


def _run(arguments: list[str], debug: bool) -> int:
    try:
        code = app(arguments, standalone_mode=False) or 0
    except TyperException as error:  # a wrong command line: typer has a message for it
        show = getattr(error, "show", None)
        show() if show else print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except Exception as error:
        if debug:
            raise
        return _report(error, _flags_of(arguments))
    if code == _INTERRUPTED:
        print(f"Interrupted.{_how_to_continue(arguments)}", file=sys.stderr)
    return code


def _flags_of(arguments: list[str]) -> dict[str, str]:
    """The flags of the command that was called, by the names of its options in Python."""
    commands = getattr(typer.main.get_command(app), "commands", {})
    options = commands[arguments[0]].params if arguments and arguments[0] in commands else []
    taken = {Path(argument).name for argument in arguments}  # a folder may be named as an option is: `generate base`
    flags = {str(option.name): option.opts[0] for option in options if option.opts[0].startswith("--")}
    return {name: flag for name, flag in flags.items() if name not in taken}


def _how_to_continue(arguments: list[str]) -> str:
    command, has_output = arguments[0], any(word.split("=")[0] == "--output" for word in arguments)
    if command in ("adapt", "evaluate") or (command == "calibrate" and has_output):
        return f" An interrupted `multitoken {command}` continues with --resume."
    return " With --output, an interrupted `multitoken calibrate` can be continued." if command == "calibrate" else ""


def _report(error: Exception, flags: dict[str, str]) -> int:
    """Print the error's own message and return the exit code; an error of an unknown kind is reported as unexpected."""
    if isinstance(error, MultitokenError):
        code = error.exit_code
    elif isinstance(error, FloatingPointError | OSError):
        code = 1
    else:
        print(f"Unexpected {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
        return 1
    print(f"Error: {with_flags(str(error), flags)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
