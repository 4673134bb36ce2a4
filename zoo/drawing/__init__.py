"""Results in, figures and tables out."""
