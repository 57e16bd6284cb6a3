"""The experiments behind the results pages: baselines, transfer learning, benchmarks."""

from densenet_tutorial.experiments import baselines, benchmarks, speed, transfer

__all__ = ["baselines", "benchmarks", "speed", "transfer"]
