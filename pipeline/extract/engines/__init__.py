"""Where the models run and who writes the shards: `local` in this process, `ray` in actors of a cluster."""
