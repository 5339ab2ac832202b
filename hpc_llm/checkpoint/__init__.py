"""A checkpoint exists when its manifest does: writing, verifying, choosing, pruning."""
