"""The commands: one module each, `argv` already parsed by typer. Heavy imports wait until a command runs."""
