"""`multitoken serve`: an OpenAI-compatible HTTP server over the batched engine, its playground page, and a terminal chat."""
