"""Load on one pod's Envoy, with the truth told past the filter: accuracy and soak."""
