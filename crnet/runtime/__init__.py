"""What every job stands on: files, the machine, memory, preemption, states, provenance. Knows nothing of the paper."""
