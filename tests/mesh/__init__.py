"""A small service mesh on loopback: real Envoys, small apps, a Zipkin collector.

Shaped like Istio's Bookinfo: gateway -> productpage -> details, and
productpage -> reviews -> ratings, with one Envoy per service. Run with
``PYTHONPATH=tests``, for example ``python -m mesh.demo``.
"""
