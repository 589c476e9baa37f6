"""The objective: the paper's two examples as an exact test, which positions count, and values against slow
references."""

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from multitoken.decoding.attention import AttentionRule
from multitoken.decoding.blocks import pack_blocks
from multitoken.decoding.draft_head import DraftHead
from multitoken.decoding.gate import GatedAdapter, adaptable_layers
from multitoken.training import head as head_module
from multitoken.training.head import Head, suppress
from multitoken.training.objective import Distillation, Objective, data_labels, supervised, within_turns
from multitoken.training.passes import GatedPasses, PackedPasses
from tests.tiny import tiny_llama, tiny_tokenizer

EOS = torch.tensor([9])

# The toy world (arXiv 2602.06019, section 3): after the prefix, "panda bamboo" and "lion meat" are equally likely.
PANDA, LION, BAMBOO, MEAT = range(4)
NEXT = {None: [0.5, 0.5, 0.0, 0.0], PANDA: [0, 0, 1.0, 0], LION: [0, 0, 0, 1.0]}


def learn_pairs(online: bool, seed: int) -> tuple[int, torch.Tensor]:
    """Train a student that is only one logit vector per position of the block (k = 2). Returns its first token, and its
    distribution at the second position."""
    torch.manual_seed(seed)
    logits = nn.Parameter(torch.randn(1, 2, 4) * 0.01)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    no_eos = torch.tensor([], dtype=torch.long)
    for step in range(600):
        proposals = logits.detach().argmax(-1)
        first = PANDA if proposals[0, 0] == PANDA else LION
        if online:  # the teacher reads the student's own first token
            teacher = torch.tensor([[NEXT[None], NEXT[first]]])
            labels = teacher.argmax(-1)
        else:  # the text alternates between panda bamboo and lion meat
            labels = torch.tensor([[[PANDA, BAMBOO], [LION, MEAT]][step % 2]])
        counted = supervised_places(proposals, labels, no_eos)
        optimizer.zero_grad()
        F.cross_entropy(logits[counted], labels[counted], reduction="sum").backward()
        optimizer.step()
    place_1 = logits.detach().softmax(-1)[0, 1]
    return int(logits.detach()[0, 0].argmax()), place_1


def supervised_places(proposals, labels, eos):
    batch = pack_blocks(torch.zeros(1, 3, dtype=torch.long), [3], torch.tensor([[1]]), (2,), 7)
    return supervised(batch, proposals, labels, eos, until_disagreement=False)


def test_online_labels_give_pairs_that_fit_and_offline_labels_a_mixture() -> None:
    """The panda and the lion: offline labels teach the second position half bamboo and half meat, whatever the first
    token is. The online objective makes it certain of the word that fits the student's own first token."""
    fits = {PANDA: BAMBOO, LION: MEAT}
    for seed in range(4):
        first, second = learn_pairs(online=True, seed=seed)
        assert second.argmax().item() == fits[first] and second.max() > 0.95
        first, second = learn_pairs(online=False, seed=seed)
        assert second[BAMBOO] == pytest.approx(0.5, abs=0.1) and second[MEAT] == pytest.approx(0.5, abs=0.1)


def batch_of_blocks(ks=(3, 3)):
    return pack_blocks(torch.tensor([[1, 2, 3, 4, 5]]), [5], torch.tensor([[0, 1]]), ks, 7)


def test_places_behind_the_first_eos_do_not_count() -> None:
    """Proposals after the student's own end of text, or after the teacher's, are never decoded."""
    proposals = torch.tensor([[4, 9, 4, 4, 4, 4]])
    labels = torch.tensor([[4, 4, 4, 9, 4, 4]])
    counted = supervised(batch_of_blocks(), proposals, labels, EOS, until_disagreement=False)
    assert counted.tolist() == [[True, True, False, True, False, False]]


def test_until_disagreement_keeps_the_first_wrong_place_and_nothing_behind_it() -> None:
    """At the first wrong position there is most to learn. After it, labels belong to a prefix that decoding never
    keeps."""
    proposals = torch.tensor([[4, 5, 4, 6, 4, 4]])
    labels = torch.tensor([[4, 4, 4, 4, 4, 4]])
    counted = supervised(batch_of_blocks(), proposals, labels, EOS, until_disagreement=True)
    assert counted.tolist() == [[True, True, False, True, False, False]]


def test_labels_of_the_data_end_with_the_data() -> None:
    """A label from the padding, or from the next row, would teach nonsense."""
    tokens = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 0, 0]])
    batch = pack_blocks(tokens, [5, 3], torch.tensor([[0, 3], [0, 1]]), (3, 3), 7)
    labels = data_labels(batch).masked_fill(~within_turns(batch, torch.tensor([[5, 5], [3, 3]])), -100)
    assert labels.tolist() == [[2, 3, 4, 5, -100, -100], [2, 3, -100, 3, -100, -100]]


def test_a_block_ends_with_its_turn() -> None:
    """Anchor 1 is in a turn that ends before 4, anchor 2 in one that goes on. After the end of a turn come the user's
    words, which the model must not learn to write."""
    batch = pack_blocks(torch.tensor([[1, 2, 3, 4, 5, 6]]), [6], torch.tensor([[1, 2]]), (3, 3), 7)
    assert within_turns(batch, torch.tensor([[4, 6]])).tolist() == [[True, True, False, True, True, True]]


def small_models():
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    student, teacher = LlamaForCausalLM(config).double().eval(), LlamaForCausalLM(config).double().eval()
    return student, teacher.requires_grad_(False)


MASK = 31
TOKENS = torch.tensor([[3, 4, 5, 6, 7, 8], [10, 11, 12, 13, 0, 0]])
LENGTHS = torch.tensor([6, 4])
ANCHORS = torch.tensor([[1, 4], [0, 2]])
KS = (3, 2)


def unit(vector):
    return vector.float() / vector.float().square().mean().sqrt()


def slow_moves(head: DraftHead, model, state, hidden, before):
    """(state, what is added to the logits) of one position, by the formula in `draft_head`. hidden [D], before: a
    token."""
    fed = head.token @ unit(model.get_input_embeddings().weight[before])
    state = (fed + head.mask @ unit(hidden) + head.bias + head.state @ state).tanh()
    return state, model.get_output_embeddings().weight.float() @ head.up @ state


def slow_loss(
    student, teacher, objective: Objective, head: DraftHead | None = None, sampled: bool = False
) -> torch.Tensor:
    """The definition of the loss, block by block and position by position, with plain forward passes."""
    if head is None:
        return _slow_loss(student, teacher, objective, None, sampled)
    return _slow_loss(student, teacher, objective, head, sampled) + 0.3 * _slow_loss(
        student, teacher, objective, None, sampled, walked_by=head
    )


def _slow_loss(student, teacher, objective: Objective, head, sampled: bool, walked_by=None) -> torch.Tensor:
    soft = objective.teacher == "soft" or sampled
    total = torch.zeros((), dtype=torch.float64)
    for row, anchors, length in zip(TOKENS, ANCHORS, LENGTHS.tolist(), strict=True):
        for anchor, k in zip(anchors.tolist(), KS, strict=True):
            prefix = row[: anchor + 1]
            own = student(torch.cat([prefix, torch.full((k - 1,), MASK)])[None], use_cache=False).logits[0, -k:].clone()
            own[:, MASK] = -torch.inf
            block = own.detach().argmax(-1)
            if (walker := head or walked_by) is not None:
                row_in = torch.cat([prefix, torch.full((k - 1,), MASK)])[None]
                hidden = student.model(row_in, use_cache=False).last_hidden_state[0, -k:]
                state = torch.zeros(walker.rank)
                for j in range(1, k):
                    known = objective.labels == "data" and anchor + j < length
                    before = row[anchor + j] if known else block[j - 1]
                    state, moves = slow_moves(walker, student, state, hidden[j], before)
                    corrected = own[j] + moves
                    block[j] = corrected.detach().argmax()
                    if head is not None:
                        own = torch.cat([own[:j], corrected[None], own[j + 1 :]])
            if objective.labels == "data" and sampled:
                block[:-1] = torch.nn.functional.pad(row[anchor + 1 : anchor + k], (0, k))[: k - 1]
            read = teacher(torch.cat([prefix, block[:-1]])[None], use_cache=False).logits[0, -k:].clone()
            read[:, MASK] = -torch.inf
            weight = 1.0
            for j in range(min(k, length - 1 - anchor)):
                label = row[anchor + 1 + j] if objective.labels == "data" else read[j].argmax()
                if soft:
                    keep = torch.arange(32) != MASK
                    p, q = read[j, keep].log_softmax(-1), own[j, keep].log_softmax(-1)
                    total = total + weight * (p.exp() * (p - q)).sum()
                else:
                    total = total - weight * own[j].log_softmax(-1)[label]
                if objective.weights == "reach" and j > 0:
                    ours = own[j].detach().softmax(-1)
                    common = torch.minimum(ours, read[j].detach().softmax(-1)).sum()
                    weight *= float(common if soft else ours[label])
                if objective.until_disagreement and block[j] != label:
                    break
    total = total / (2 * (len(KS) if objective.by_block else sum(KS)))
    if objective.next_token_weight:
        rows = []
        for row, length in zip(TOKENS, LENGTHS.tolist(), strict=True):
            ours = suppress(student(row[None, :length], use_cache=False).logits[0], MASK).double()
            theirs = suppress(teacher(row[None, :length], use_cache=False).logits[0], MASK).double()
            keep = torch.arange(32) != MASK
            p, q = theirs[:, keep].log_softmax(-1), ours[:, keep].log_softmax(-1)
            rows.append((p.exp() * (p - q)).sum(-1)[: length - 1].mean())
        total = total + objective.next_token_weight * torch.stack(rows).mean()
    return total


def distillation(
    method: str, objective: Objective, eos_ids=(30,), head: DraftHead | None = None
) -> tuple[Distillation, object, object]:
    """A student that differs from its teacher, for either method. Returns the step, the student and the teacher, the
    last two as plain models."""
    student, teacher = small_models()
    if method == "full":
        passes = PackedPasses(Head(student, MASK), Head(teacher, MASK), AttentionRule(teacher))
        trained = nn.ModuleDict({"main": student} | ({"draft_head": head} if head else {}))
        step = Distillation(trained, passes, objective=objective, mask_id=MASK, eos_ids=[*eos_ids], drafter=head)
        return step, student, teacher
    adapter = GatedAdapter(teacher, mask_id=MASK, rank=4, layers=adaptable_layers(teacher)).double()
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.3)
    adapter.attach(teacher)
    passes = GatedPasses(Head(teacher, MASK), AttentionRule(teacher))
    trained = nn.ModuleDict({"main": adapter} | ({"draft_head": head} if head else {}))
    step = Distillation(trained, passes, objective=objective, mask_id=MASK, eos_ids=[*eos_ids], drafter=head)
    return step, teacher, teacher


def inputs(tokens=TOKENS, lengths=LENGTHS, anchors=ANCHORS, ks=KS, *, sampled=False):
    trainable = torch.arange(tokens.shape[1]) < lengths[:, None] - 1
    ends = lengths[:, None].expand_as(anchors)
    return {
        "tokens": tokens, "lengths": lengths, "segments": torch.zeros_like(tokens), "anchors": anchors, "ends": ends,
        "ks": torch.tensor(ks), "trainable": trainable,
        "sampled": torch.full_like(anchors, sampled, dtype=torch.bool),
    }  # fmt: skip


@pytest.mark.parametrize("chunk", [2**24, 64], ids=["whole", "chunked"])
@pytest.mark.parametrize("method", ["full", "gated"])
@pytest.mark.parametrize(
    "objective",
    [
        Objective(),
        Objective(teacher="soft"),
        Objective(labels="data"),
        Objective(until_disagreement=True),
        Objective(labels="data", until_disagreement=True),
        Objective(next_token_weight=0.5),
        Objective(weights="reach"),
        Objective(weights="reach", until_disagreement=True),
        Objective(weights="reach", labels="data"),
        Objective(weights="reach", teacher="soft"),
    ],
    ids=str,
)
def test_loss_and_gradient_equal_the_slow_reference(objective: Objective, method: str, chunk: int, monkeypatch) -> None:
    """For each option, method and chunk size (64 logits are two positions), the loss and its gradient must equal the
    definition. float32 logits bound the error, hence 1e-5."""
    monkeypatch.setattr(head_module, "MOST_LOGITS", chunk)
    distil, student, teacher = distillation(method, objective)
    loss, statistics = distil(inputs())
    reference = slow_loss(student, teacher, objective)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    parameters = list(distil.parameters())
    for ours, expected in zip(
        torch.autograd.grad(loss, parameters, allow_unused=True),
        torch.autograd.grad(reference, parameters, allow_unused=True),
        strict=True,
    ):
        if ours is None or expected is None:
            assert ours is None and expected is None
        else:
            assert torch.allclose(ours, expected, atol=1e-5)
    assert statistics.seen[0] == 4


def random_head() -> DraftHead:
    torch.manual_seed(1)
    head = DraftHead(32, 6)
    nn.init.normal_(head.up, std=0.3)
    return head


@pytest.mark.parametrize("chunk", [2**24, 64], ids=["whole", "chunked"])
@pytest.mark.parametrize("method", ["full", "gated"])
@pytest.mark.parametrize(("labels", "sampled"), [("data", False), ("data", True), ("online", False)])
def test_with_a_draft_head_too(labels, sampled: bool, method: str, chunk: int, monkeypatch) -> None:
    """Value and gradient of the loss with the draft head, and of its part without the head, must equal the formula
    position by position. Guards against a state that starts at the wrong slot or reads the token at its own
    position."""
    monkeypatch.setattr(head_module, "MOST_LOGITS", chunk)
    objective, head = Objective(labels=labels, weights="reach"), random_head()
    distil, student, teacher = distillation(method, objective, eos_ids=(), head=head)
    loss, _ = distil(inputs(sampled=sampled))
    reference = slow_loss(student, teacher, objective, head, sampled)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-4)
    parameters = list(distil.parameters())  # of the student or the adapter, and of the head
    ours, expected = (torch.autograd.grad(value, parameters, allow_unused=True) for value in (loss, reference))
    for mine, theirs in zip(ours, expected, strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.allclose(mine.double(), theirs.double(), atol=1e-4)


@pytest.mark.parametrize("method", ["full", "gated"])
def test_the_teachers_own_greedy_words_need_no_teacher_pass(method: str) -> None:
    """The shortcut must give the same loss: data labels on greedy text, cut at the first disagreement."""
    weight = 0.5 if method == "full" else 0.0
    results = []
    for labels in ("online", "data"):
        objective = Objective(labels=labels, until_disagreement=True, next_token_weight=weight)
        distil, _, teacher = distillation(method, objective, eos_ids=())
        with torch.no_grad():
            tokens = TOKENS[:, :3].clone()
            for _ in range(7):
                logits = teacher(tokens, use_cache=False).logits[:, -1]
                logits[:, MASK] = -torch.inf
                tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
        batch = inputs(tokens, torch.tensor([10, 10]), torch.tensor([[2, 5], [3, 4]]), (4, 4))
        loss, statistics = distil(batch)
        results.append((loss.item(), statistics.accepted))
    assert results[0] == pytest.approx(results[1], rel=1e-6)


def test_others_words_are_taught_as_sampled_ones() -> None:
    """The tokens of another author are not labels: the original might write something else there."""
    losses = []
    for foreign, sampled in ((True, False), (False, True), (False, False)):
        distil, *_ = distillation("full", Objective(labels="data", weights="reach", foreign=foreign))
        losses.append(distil(inputs(sampled=sampled))[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and losses[0] != pytest.approx(losses[2], rel=1e-3)


def test_the_head_keeps_what_other_libraries_put_into_the_trunk() -> None:
    """accelerate replaces the trunk's forward where it places a model on several devices."""
    model = tiny_llama(tiny_tokenizer())
    add_hook_to_module(model.base_model, ModelHook())
    placed = model.base_model.__dict__["forward"]
    Head(model, MASK)
    assert model.base_model.__dict__["forward"] is placed
