package main

import (
	"context"
	"crypto/tls"
	_ "istio.io/istio/pkg/wasm"
)

func main() { _ = context.Background(); _ = tls.Config{} }
