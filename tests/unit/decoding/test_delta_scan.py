"""The scan must equal the recurrence that it replaces, computed one token after the other in float64."""

import pytest
import torch

from multitoken.decoding.delta_scan import scan
from multitoken.decoding.scan_states import CHUNK

NAMES = ("query", "key", "value", "g", "beta", "initial_state")


def inputs(tokens: int, groups: int, rows: int = 2, heads: int = 4, keys: int = 6, values: int = 5) -> dict:
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(rows, tokens, groups, keys)] * 2 + [(rows, tokens, heads, values), *[(rows, tokens, heads)] * 2]
    query, key, value, g, beta = (torch.randn(s, generator=generator) for s in shapes)
    start = torch.randn(rows, heads, keys, values, generator=generator)
    given = query, key, value, -g.abs() * 2, beta.sigmoid(), start
    return {name: t.requires_grad_() for name, t in zip(NAMES, given, strict=True)}


def recurrence(query, key, value, g, beta, initial_state):
    """The outputs, and the states before each token and after the last."""
    heads = value.shape[2]
    query, key = (t.double() / t.double().square().sum(-1, keepdim=True).add(1e-6).sqrt() for t in (query, key))
    query, key = (t.repeat_interleave(heads // t.shape[2], 2) for t in (query * query.shape[-1] ** -0.5, key))
    outputs, states = [], [initial_state.double()]
    for t in range(value.shape[1]):
        state = states[-1] * g[:, t, :, None, None].double().exp()
        change = (value[:, t].double() - (key[:, t, :, :, None] * state).sum(-2)) * beta[:, t, :, None].double()
        states.append(state + key[:, t, :, :, None] * change[:, :, None])
        outputs.append((query[:, t, :, :, None] * states[-1]).sum(-2))
    return torch.stack(outputs, 1), torch.stack(states, 1)


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("tokens", [1, 5, CHUNK, 2 * CHUNK + 9])
def test_outputs_states_and_gradients_are_those_of_the_recurrence(tokens: int, groups: int) -> None:
    """The states after the last token and after any others: the first and last of a chunk, no token, rows more than
    once."""
    given = inputs(tokens, groups)
    behind = torch.tensor([n for n in (tokens, 0, 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3) if n <= tokens])
    rows = torch.arange(len(behind)) % 2
    y, last, states = scan(**given, use_qk_l2norm_in_kernel=True, leaves_any=True)
    expected, every = recurrence(**given)
    ours, theirs = [y, last, states.at(rows, behind)], [expected, every[:, -1], every[rows, behind]]
    weights = [torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for t in ours]
    for found in (ours, theirs):
        total = sum((t * w).sum() for t, w in zip(found, weights, strict=True))
        found += torch.autograd.grad(total, list(given.values()))
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), reference.double(), rtol=2e-4, atol=2e-4)


def test_what_is_not_to_be_left_is_none() -> None:
    given = inputs(CHUNK + 3, 2)
    y, last, states = scan(**given, leaves_last=False)
    assert last is None and states is None
    assert torch.equal(y, scan(**given)[0])
