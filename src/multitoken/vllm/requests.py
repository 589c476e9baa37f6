"""The requests of a batch as tensors: built when requests join, leave or move, and read at every step."""

import hashlib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multitoken.decoding.gumbel import seed_key, signed
from multitoken.decoding.policies import Policy, as_numbers

from .accept import Rules
from .settings import Settings, request_policy


@dataclass(frozen=True)
class Facts:
    """What does not change while a request runs."""

    policy: Policy
    seed: int  # of its sampling noise, as `noise_keys` takes it
    limit: int  # tokens that prompt and output may have together
    eos: int  # -1 for none


@dataclass(frozen=True)
class Rows:
    """B requests in the order of the batch."""

    rules: Rules
    seeds: Tensor  # [B] int64, on the device
    limits: NDArray[np.int64]  # [B]
    ends: NDArray[np.int64]  # [B, 1], -1 for none
    paced: bool  # whether no request's text depends on how many masks it feeds
    plain: bool  # whether no request ever feeds masks


class Requests:
    """Keeps the rows of the current batch. If it is the same as in the last step, this costs one comparison."""

    def __init__(self, settings: Settings, seed: int, device: torch.device) -> None:
        self._settings = settings
        self._seed = seed
        self._device = device
        self._known: list[Any] = []  # vLLM's records, in the order of the batch
        self._facts: list[Facts] = []
        self._rows: Rows | None = None

    def rows(self, names: Sequence[str], states: Mapping[str, Any]) -> Rows:
        """names: the requests in the order of the batch. states: vLLM's record of each. A name may be
        reused, a record is not."""
        records = [states[name] for name in names]
        if self._rows is None or len(records) != len(self._known) or not all(map(operator.is_, records, self._known)):
            old = {id(record): facts for record, facts in zip(self._known, self._facts, strict=True)}
            self._facts = [
                old.get(id(record)) or self._facts_of(n, record) for n, record in zip(names, records, strict=True)
            ]
            self._known = records
            self._rows = self._table(self._facts)
        return self._rows

    def _facts_of(self, name: str, state: Any) -> Facts:
        params = state.sampling_params
        seed = params.seed
        if seed is None:  # the same on every rank, without communication
            seed = int.from_bytes(hashlib.sha256(f"{self._seed}:{name}".encode()).digest()[:8], "little")
        eos = params.eos_token_id
        return Facts(
            policy=request_policy(self._settings, params.extra_args),
            seed=signed(seed_key(seed, 0)),
            limit=state.num_prompt_tokens + (params.max_tokens or 1 << 40),
            eos=-1 if eos is None else eos,
        )

    def _table(self, facts: list[Facts]) -> Rows:
        numbers = [as_numbers(f.policy) for f in facts]
        rules = Rules(
            thresholds=np.array([threshold for threshold, _ in numbers], np.float64),
            tests_anchor=np.array([tests for _, tests in numbers]),
            verifies=np.array([f.policy.verifies for f in facts]),
            k=np.array([f.policy.k for f in facts], np.int64),
        )
        return Rows(
            rules,
            seeds=torch.tensor([f.seed for f in facts], dtype=torch.int64).to(self._device, non_blocking=True),
            limits=np.array([f.limit for f in facts], np.int64),
            ends=np.array([[f.eos] for f in facts], np.int64),
            paced=all(f.policy.verifies or f.policy.k == 1 for f in facts),
            plain=all(f.policy.k == 1 for f in facts),
        )
