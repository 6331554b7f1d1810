"""Summary statistics: blocks of samples to cross-products, sums and differences of these."""
