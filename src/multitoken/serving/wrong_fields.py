"""What is wrong with a request's body, in the words of this API and not in pydantic's."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from multitoken.errors import nearest

from .errors import ApiError, refused
from .protocol import MtpOptions, StreamOptions

_NESTED: dict[str, type[BaseModel]] = {"mtp": MtpOptions, "stream_options": StreamOptions}
_EXPECTED = {  # by pydantic's name of the problem
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "literal_error": "{expected}",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
}


def wrong_body(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """The response to a body that pydantic refuses for these reasons. It is about the first field."""
    found = problems[0]
    field, kind = _field(found), found["type"]
    if kind == "json_invalid":
        return refused(f"the body is not JSON: {found['ctx']['error']}")
    if kind == "value_error":
        message = found["msg"].removeprefix("Value error, ")
        if field is None:  # it names its field first
            return refused(message, message.split()[0].strip("'"))
        return refused(f"{field} is {_short(found['input'])}: {message}", field)
    if kind == "missing":
        return refused(f"{field or 'the body'} is missing", field)
    if kind == "extra_forbidden":
        owner = str(found["loc"][-2])
        valid = nearest(str(found["loc"][-1]), _NESTED[owner].model_fields) if owner in _NESTED else "; leave it out"
        return refused(f"{field} is not a field of this request{valid}", field)
    # Where a field may have one of several types, there is one problem for each type.
    same = [each for each in problems if _field(each) == field and each["input"] is found["input"]]
    expected = " or ".join(dict.fromkeys(map(_expected, same)))
    return refused(f"{field or 'the body'} is {_short(found['input'])}; expected {expected}", field)


def _field(problem: Mapping[str, Any]) -> str | None:
    """ "mtp.threshold". Pydantic also puts names of types into the location, which are left out."""
    parts = [part for part in problem["loc"][1:] if isinstance(part, int) or (part.islower() and part != "str")]
    return ".".join(str(part) for part in parts if "[" not in str(part)) or None


def _expected(problem: Mapping[str, Any]) -> str:
    known = _EXPECTED.get(problem["type"])
    if known is not None:
        return known.format_map(problem.get("ctx") or {})
    return str(problem["msg"]).removeprefix("Input should be ")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
