"""Name options as the command line does: `k_max` in a message becomes `--k-max`, and `k_max=4` becomes `--k-max 4`."""

import re
from collections.abc import Mapping

_ALONE = r"(?<![\w/.'\"=-]){}(?![\w/'\"-]|\.\w)"  # not a part of a path, of a quoted word or of a longer name


def with_flags(message: str, flags: Mapping[str, str]) -> str:
    """The message of an error, with flags in place of Python's names. flags: the flag of each option by its name, `--k-max` by
    `k_max`. Words such as `data` and `steps` are replaced only where they clearly name the option."""
    for name, flag in flags.items():
        value = _ALONE.format(rf"{name}=('[^']*'|[\w.]*\w)")
        message = re.sub(value, lambda found, flag=flag: _given(flag, found[1].strip("'")), message)
        message = re.sub(rf"^{name}(?= (?:is|must|needs|belongs)\b)", flag, message, flags=re.MULTILINE)
        message = re.sub(rf"\bleave {name} out\b", f"leave {flag} out", message)
    return long_names_as_flags(message, flags)


def long_names_as_flags(text: str, flags: Mapping[str, str]) -> str:
    """Flags in place of the names that hold an underscore, which no sentence holds otherwise."""
    for name, flag in flags.items():
        if "_" in name:
            text = re.sub(_ALONE.format(name), flag, text)
    return text


def _given(flag: str, value: str) -> str:
    if value in ("True", "False"):
        return flag if value == "True" else f"--no-{flag.removeprefix('--')}"
    return f"{flag} {value}"
