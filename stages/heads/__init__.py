"""What turns a backbone's features at the action queries into a chunk of actions, or into latent actions."""
