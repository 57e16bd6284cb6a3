"""What the results pages are made from: networks to compare with, and measurements."""

from densenet_tutorial.experiments import baselines, benchmarks, transfer

__all__ = ["baselines", "benchmarks", "transfer"]
