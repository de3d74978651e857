"""Speech models for Transformers: graft a pretrained speech encoder onto a pretrained text decoder."""
