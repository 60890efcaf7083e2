"""What `benchmarks/peers.py` stands on: other tools' environments, one model and its pairs in each one's format, a worker in each."""
