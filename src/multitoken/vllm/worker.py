"""vLLM's worker, with this plugin's sampler in its model runner."""

from pathlib import Path
from typing import Any

from vllm.platforms import current_platform

from .gate import attach
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
        take_over(self.model_runner, Sampler(self.model_runner, settings_of(self.vllm_config)))

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        settings = settings_of(self.vllm_config)
        if settings.adapter is not None:
            attach(self.model_runner.get_model(), Path(settings.adapter), settings.mask_id)
