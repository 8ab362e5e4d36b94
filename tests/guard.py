"""How long tests wait for what hangs. No verdict depends on it: a slow machine is far below."""

HANG_SECONDS = 3600
