"""The modules of the paper's section 4, a file each; ``crnet/methods/crnet.py`` puts them together.

Shapes: N episodes, W channels (``width``), h x w the 1/8 map, H x W the input.
"""
