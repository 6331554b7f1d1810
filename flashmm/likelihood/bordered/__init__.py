"""The engine of one diagonal block with a border, the border shared by all features."""
