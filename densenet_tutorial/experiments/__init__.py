"""The experiments behind the results pages: baselines, transfer learning, benchmarks."""
