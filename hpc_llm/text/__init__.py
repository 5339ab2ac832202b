"""Corpus files → documents, and the tokenizers that read them."""
