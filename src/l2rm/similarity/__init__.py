"""Features to similarities: the retrieval models."""
