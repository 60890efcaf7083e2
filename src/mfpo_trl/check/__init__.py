"""`mfpo check`: what would go wrong in a training, found without training."""
