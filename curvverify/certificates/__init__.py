"""Certified radii: how far an input may move, in l_2 or l_inf, before a network's decision can change."""
