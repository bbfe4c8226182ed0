"""A real Kubernetes, with a real Istio, under the commands of the documentation."""
