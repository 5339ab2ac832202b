"""From text to an exact stream of tokens: corpus → tokenizer → shards → order → loader."""
