"""The experiments behind the results pages: baselines, transfer learning, benchmarks."""

from densenet_tutorial.experiments import baselines, benchmarks, transfer

__all__ = ["baselines", "benchmarks", "transfer"]
