"""``crnet bench``: what this machine can do, what each stage makes of it, and plain loops to compare with."""
