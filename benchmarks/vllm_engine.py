"""One vLLM engine in a process of its own, driven over pipes. `vllm_serving` holds several and asks one after the other.

    python -m benchmarks.vllm_engine '{"model": FOLDER, ...}'       options of `vllm.LLM`

The first line of standard output is {"vllm": version}. After that, each line of standard input is a question:

    prompts   [[ids]]
    at_once   how many of them are in flight, until fewer are left
    params    of `vllm.SamplingParams`: max_tokens, temperature, extra_args, ...
    seed      of the first prompt; each next prompt's seed is one higher (left out: greedy)

The answer is {"answers": [[ids]], "seconds": s, "steps": engine steps}. An engine that is not asked waits and uses no processor.
"""

import json
import os
import sys
import time
from typing import Any

from benchmarks.vllm_environment import IN_PROCESS

_SETTLE = 0.3  # seconds: threads of the engine that was asked before may still be busy-waiting


def answer(
    engine: Any, prompts: list[list[int]], at_once: int, params: dict[str, Any], seed: int | None = None
) -> dict[str, Any]:
    """Answers to all prompts, with `at_once` of them in flight until fewer are left."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    each = [
        SamplingParams(**params, seed=None if seed is None else seed + i, output_kind=RequestOutputKind.DELTA)
        for i in range(len(prompts))
    ]
    answers: list[list[int]] = [[] for _ in prompts]
    added = finished = steps = 0
    time.sleep(_SETTLE)
    started = time.perf_counter()
    while finished < len(prompts):
        while added < len(prompts) and added - finished < at_once:
            engine.add_request(str(added), {"prompt_token_ids": prompts[added]}, each[added])
            added += 1
        for output in engine.step():
            answers[int(output.request_id)] += output.outputs[0].token_ids
            finished += output.finished
        steps += 1
    return {"answers": answers, "seconds": time.perf_counter() - started, "steps": steps}


def main() -> None:
    os.environ.update(IN_PROCESS)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # everything that vLLM prints goes to standard error
    import vllm

    llm = vllm.LLM(**json.loads(sys.argv[1]))
    print(json.dumps({"vllm": vllm.__version__}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(llm.llm_engine, **json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
