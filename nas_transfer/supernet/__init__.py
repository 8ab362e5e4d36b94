"""Weight-sharing supernets: the tables that describe them, their costs, and the modules that hold their weights.

`table` and `cost` are free of torch: an arch is drawn and costed without building a network.
"""
