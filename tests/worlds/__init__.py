"""Random meshes on real Envoys: the faults that nobody thought of (``make worlds``)."""
