"""What a model is made of, and nothing else."""
