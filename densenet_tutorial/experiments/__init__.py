"""The experiments behind the results pages: baselines, claims, transfer learning, benchmarks."""

from densenet_tutorial.experiments import baselines, benchmarks, claims, speed, transfer

__all__ = ["baselines", "benchmarks", "claims", "speed", "transfer"]
