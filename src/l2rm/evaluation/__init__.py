"""How good is a retrieval model, and how well are mismatched pairs found: scores in blocks, exact ranks, recalls."""
