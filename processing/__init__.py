"""Audio and text to tensors and back: audio files, data sets, processors, collators, metrics."""
