"""Grids of runs, their table and their plots."""
