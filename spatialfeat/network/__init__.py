"""The ResNet-50: its weights files, one epoch of training, the one evaluation-mode loop."""
