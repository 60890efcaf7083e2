"""What `benchmarks/gpu.py` runs on a device: trainings, comparisons and profiles, each part by itself."""
