"""The commands, one module each; typer has already parsed `argv`. Heavy imports happen only when a command runs."""
