"""Training the small frozen models that the package ships: Concerto tiny and VGGT tiny."""
