"""The embedded default: a small base model made by this folder's own script, its frozen task generators, the demo."""
