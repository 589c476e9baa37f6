"""Which KV cache entries count as computed, under policies whose mask tokens are final.

vLLM treats a step's tokens as accepted drafts, whose KV entries are computed, and rolls back the entries of the
rejected ones. That is right for verified policies. If a policy emits the tokens that masks predicted, these entries
belong to the masks and not to the tokens. Only the real tokens that were fed may count as computed; the next step feeds
the others again.
"""

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from multitoken.decoding.policies import Policy

from .plugin import settings_of
from .settings import request_policy


class FinalMasksScheduler(Scheduler):
    """The scheduler of a server whose requests may emit tokens that are not confirmed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = settings_of(self.vllm_config)

    def _policy(self, request: Any) -> Policy:
        params = request.sampling_params
        return request_policy(self._settings, params.extra_args) if params.extra_args else self._settings.policy

    def _update_request_with_output(
        self, request: Any, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        extra = len(new_token_ids) - 1
        # num_computed_tokens is 0 if the request was preempted while this step ran.
        if extra > 0 and not is_stale and request.num_computed_tokens > 0 and not self._policy(request).verifies:
            request.num_computed_tokens -= extra
        return super()._update_request_with_output(request, new_token_ids, is_stale)
