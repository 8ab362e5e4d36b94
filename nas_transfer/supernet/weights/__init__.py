"""What the importers of public weights share: records of their origin, maps of tensor names, and safe reading."""
