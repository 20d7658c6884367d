"""Behaviour: one actor a module, and the pure helpers beside the one that owns them."""
