"""vLLM's worker, with this plugin's sampler in its model runner."""

from pathlib import Path
from typing import Any

from vllm.platforms import current_platform

from .drafts import DraftsInVllm
from .gate import Masks, attach
from .pacing import Pacer
from .plugin import settings_of
from .private import take_over
from .sampler import Sampler

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Base
else:
    from vllm.v1.worker.gpu_worker import Worker as Base


class Worker(Base):
    def init_device(self) -> None:
        super().init_device()
        self.sampler = Sampler(self.model_runner, settings_of(self.vllm_config))
        self._masks: Masks | None = None
        take_over(self.model_runner, self.sampler, self.sampler.take, self._begin)

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        settings = settings_of(self.vllm_config)
        if settings.adapter is not None:
            self._masks = attach(
                self.model_runner.get_model(), Path(settings.adapter), settings.mask_id, self.vllm_config
            )
        if settings.head is not None:
            self.sampler.draft_with(DraftsInVllm(self.model_runner.get_model(), Path(settings.head)))

    def _begin(self, feeds_more: bool) -> None:
        """Called before each pass. Masks are always fed after a request's last real token, so a pass that feeds
        nothing more has none."""
        if self._masks is not None:
            self._masks.expected = feeds_more

    def compile_or_warm_up_model(self) -> Any:
        times = super().compile_or_warm_up_model()
        settings = settings_of(self.vllm_config)
        if settings.adaptive and settings.policy.verifies:
            self.sampler.pace(Pacer(settings.k - 1))
        return times
