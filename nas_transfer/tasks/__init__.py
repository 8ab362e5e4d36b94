"""Tasks: a network, its loss, its metric and its `score_key`, trained as one subnet or as the whole supernet."""
