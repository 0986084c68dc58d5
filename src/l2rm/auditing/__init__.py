"""Which pairs are mismatched, what should each be paired with, and a report that shows it."""
