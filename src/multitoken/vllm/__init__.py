"""Adapted models in vLLM: `pip install multitoken[vllm]`, then `vllm serve CHECKPOINT`, with no further flag.

    plugin      what vLLM's entry point calls: a checkpoint with an `mtp` block gets the parts below
    settings    what the checkpoint, the server's options and a request say
    accept      from a step's tokens to what is emitted and what is drafted next, for a whole batch
    requests    the policies of the requests in a batch, as tensors
    grid        the rows of a step's logits, by request and place
    sampler     from a step's logits to its tokens
    proposer    drafts and masks of the next step, as vLLM takes them
    scheduler   how far the KV cache is real, where masks are final
    worker      puts the sampler into vLLM's model runner
    private     every private name of vLLM that this leans on

Nothing but `settings`, `accept` and `requests` can be imported where vLLM is not installed.
"""
