"""Words only: what each actor understands. Imports nothing of ours but its own siblings."""
