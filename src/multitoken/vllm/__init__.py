"""Adapted models in vLLM: `pip install multitoken[vllm]`, then `vllm serve CHECKPOINT`, with no further flag.

    plugin      vLLM's entry point: installs the parts below for a checkpoint with an `mtp` block
    settings    the options of the checkpoint, of the server and of a request
    accept      from a step's tokens to the emitted tokens and the next drafts, for a whole batch
    requests    the policies of the requests in a batch, as tensors
    grid        the rows of a step's logits, arranged by request and place
    sampler     from a step's logits to its tokens
    proposer    the proposer class that vLLM requires for speculative decoding
    scheduler   which KV cache entries count as computed, under policies whose mask tokens are final
    worker      puts the sampler into vLLM's model runner
    private     every private name of vLLM that the plugin uses

`settings`, `accept` and `requests` can be imported without vLLM.
"""
