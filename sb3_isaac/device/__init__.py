"""What the algorithms are made of: networks, Adam and CUDA graphs on a device. Knows no SB3, environment or buffer."""
