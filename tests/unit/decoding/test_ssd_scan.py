"""The scan must equal the recurrence that it replaces, computed one token after the other in float64."""

import pytest
import torch
from torch.nn import functional as F

from multitoken.decoding.scan_states import CHUNK
from multitoken.decoding.ssd_scan import scan


def inputs(tokens: int, groups: int, rows: int = 2, heads: int = 6, size: int = 5, states: int = 7):
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(rows, tokens, heads, size), (rows, tokens, heads), *[(rows, tokens, groups, states)] * 2]
    x, dt, B, C = (torch.randn(s, generator=generator) for s in shapes)
    A, D, bias = -torch.rand(heads, generator=generator) * 4, torch.randn(heads), torch.randn(heads)
    start = torch.randn(rows, heads, size, states, generator=generator)
    return [t.requires_grad_() for t in (x, dt, A, B, C, D, bias, start)]


def recurrence(x, dt, A, B, C, D, bias, start, limit):
    x, dt, A, B, C, D, bias, state = (t.double() for t in (x, dt, A, B, C, D, bias, start))
    dt = F.softplus(dt + bias).clamp(*limit)
    heads = x.shape[2]
    B, C = (t.repeat_interleave(heads // t.shape[2], 2) for t in (B, C))
    outputs = []
    for t in range(x.shape[1]):
        step = dt[:, t, :, None, None]
        state = (A[:, None, None] * step).exp() * state + step * x[:, t, :, :, None] * B[:, t, :, None, :]
        outputs.append((state * C[:, t, :, None, :]).sum(-1) + D[:, None] * x[:, t])
    return torch.stack(outputs, 1), state


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("tokens", [1, 2, 17, CHUNK, CHUNK + 1, 2 * CHUNK + 30])
def test_outputs_states_and_gradients_are_those_of_the_recurrence(tokens: int, groups: int) -> None:
    """Guards against a head that reads another group's B, and a chunk that loses the state before it: these errors
    would be as large as the numbers themselves."""
    given, limit = inputs(tokens, groups), (0.05, 1.5)
    x, dt, A, B, C, D, bias, start = given
    ours = scan(x, dt, A, B, C, D=D, dt_bias=bias, initial_states=start, dt_softplus=True, dt_limit=limit)[:2]
    theirs = recurrence(*given, limit)
    weights = [torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for t in ours]
    gradients = [
        torch.autograd.grad(sum((y * w).sum() for y, w in zip(found, weights, strict=True)), given)
        for found in (ours, theirs)
    ]
    for mine, reference in zip([*ours, *gradients[0]], [*theirs, *gradients[1]], strict=True):
        torch.testing.assert_close(mine.double(), reference.double(), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("tokens", [17, CHUNK + 9])
def test_without_the_last_state_the_outputs_are_the_same(tokens: int) -> None:
    """The states between chunks are still needed."""
    x, dt, A, B, C, D, bias, start = (t.detach() for t in inputs(tokens, 2))
    whole = scan(x, dt, A, B, C, D=D, dt_bias=bias, initial_states=start, dt_softplus=True)[0]
    alone = scan(x, dt, A, B, C, D=D, dt_bias=bias, initial_states=start, dt_softplus=True, leaves_last=False)
    assert torch.equal(alone[0], whole) and alone[1:] == (None, None)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("tokens", [5, CHUNK, 2 * CHUNK + 9])
def test_the_states_behind_any_tokens_are_those_of_shorter_rows(tokens: int, groups: int) -> None:
    """States after the first and the last token of a chunk, after no token, of rows in any order and more than once;
    gradients, too."""
    given = inputs(tokens, groups)
    x, dt, A, B, C, D, bias, start = given
    named = {"D": D, "dt_bias": bias, "dt_softplus": True}
    states = scan(x, dt, A, B, C, initial_states=start, leaves_last=False, leaves_any=True, **named)[2]
    behind = [n for n in (tokens, 0, 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3) if n <= tokens]
    rows = [i % 2 for i in range(len(behind))]
    ours = states.at(torch.tensor(rows), torch.tensor(behind))
    shorter = []
    for row, n in zip(rows, behind, strict=True):
        cut = [t[row : row + 1, :n] for t in (x, dt, B, C)]
        shorter.append(
            scan(*cut[:2], A, *cut[2:], initial_states=start[row : row + 1], **named)[1] if n else start[row, None]
        )
    theirs = torch.cat(shorter)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    wanted = [x, dt, A, B, bias, start]
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), wanted) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_long_row_of_strong_decays_stays_finite_and_right() -> None:
    """Sums of logarithms grow with the row. Exponentials of their differences must not overflow or lose the last
    digits."""
    given = inputs(200, 1)
    given[2] = torch.full_like(given[2], -60.0)
    x, dt, A, B, C, D, bias, start = (t.detach() for t in given)
    ours = scan(x, dt, A, B, C, D=D, dt_bias=bias, initial_states=start, dt_softplus=True)[:2]
    for mine, reference in zip(ours, recurrence(x, dt, A, B, C, D, bias, start, (0.0, float("inf"))), strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine.double(), reference, rtol=1e-4, atol=1e-4)
