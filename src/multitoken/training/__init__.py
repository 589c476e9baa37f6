"""From prompts to a multi-token model: samples, blocks, student and teacher, loss, trainer."""
