"""The embedded models: a small base model, trained by a script in this folder, its frozen task generators, the demo."""
