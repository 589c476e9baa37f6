"""Several threads use one model. Each gets the same text as alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from multitoken.decoding import Decoder, Exact
from multitoken.decoding.gate import GatedAdapter, adaptable_layers
from multitoken.decoding.lock import lock_of
from tests.parity.families import EOS, SUPPORTED

BEYOND = 10_000
PROMPTS = [torch.randint(6, 90, (3 + 5 * i,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(8)]


def gated_decoder() -> Decoder:
    """The adapter has a large effect: if masks and real tokens are confused, the text shows it."""
    model = SUPPORTED["llama"]().requires_grad_(False)
    adapter = GatedAdapter(model, mask_id=BEYOND, rank=4, layers=adaptable_layers(model))
    torch.manual_seed(0)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.3)
    adapter.attach_for_decoding(model)
    return Decoder(model, mask_id=BEYOND, trained_k=4, eos_ids=[EOS])


def text(decoder: Decoder, prompt: list[int]) -> list[int]:
    chunks = decoder.decode([prompt], policy=Exact(0.0), max_new_tokens=24)
    return [token for chunk in chunks for token in chunk.token_ids]


def test_threads_decode_as_if_each_were_alone() -> None:
    """The gate records where the masks of *the* pass are, and layers use the adapter's forward while there are any. Guards
    against a bug: two passes at once failed, or the adapter acted at real tokens and silently changed the original's text."""
    decoder = gated_decoder()
    alone = [text(decoder, prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(lambda prompt: text(decoder, prompt), PROMPTS)) == alone


def test_an_abandoned_stream_holds_nothing() -> None:
    """If a lock were held for a whole answer, a reader that goes away would block every other thread forever."""
    decoder = gated_decoder()
    left = decoder.decode([PROMPTS[0]], policy=Exact(0.0), max_new_tokens=24)
    next(left)
    found: list[list[int]] = []
    other = threading.Thread(target=lambda: found.append(text(decoder, PROMPTS[1])), daemon=True)
    other.start()
    other.join(60)
    assert found == [text(decoder, PROMPTS[1])]
    assert sum(len(chunk.token_ids) for chunk in left) > 0, "and who comes back reads on"


def test_the_lock_is_the_models() -> None:
    """A step must wait while something else holds the lock of its model, such as another engine or a training run."""
    decoder = gated_decoder()
    done = threading.Event()
    with lock_of(decoder.model):
        waiting = threading.Thread(target=lambda: (text(decoder, PROMPTS[0]), done.set()), daemon=True)
        waiting.start()
        assert not done.wait(0.2)
    waiting.join(60)
    assert done.is_set()
