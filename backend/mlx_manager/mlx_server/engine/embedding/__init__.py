"""Models that read texts and generate none: embedding models and rerankers, in workers of their own kind."""
