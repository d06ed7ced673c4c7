"""Embedding models and rerankers, which run in their own kind of worker."""
