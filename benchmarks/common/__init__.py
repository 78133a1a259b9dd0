"""Tools that the benchmarks share: clock, tables, images, fits and sample metrics."""
