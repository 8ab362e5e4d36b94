"""The checks of scripts/check_gpu.py and what runs them."""
