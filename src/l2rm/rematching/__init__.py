"""The method: divide the pairs, learn the cost, rematch by partial transport, learn from the plan."""
