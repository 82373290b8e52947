"""Stable-Baselines3 for NVIDIA Isaac Gym, at tensor speed."""
