"""Training, evaluation, figures and benchmarks, run from a checkout: ``python -m zoo.train``."""
