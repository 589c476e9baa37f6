"""`multitoken serve`: an OpenAI-compatible server on the batched engine, its playground page, and a terminal chat."""
