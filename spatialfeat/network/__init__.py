"""The ResNet-50: its weights files, its fast form, the one evaluation loop."""
