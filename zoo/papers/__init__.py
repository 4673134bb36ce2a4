"""Comparisons and measurements of the papers, a folder for each method."""
