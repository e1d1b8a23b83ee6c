"""A table of the paper's style: cells, layout, caption, and the files it is written to."""
