"""Shards → batches: an exact stream of tokens, the same at any number of ranks."""
