// Fetches modules from images with the code of Istio's agent, as a sidecar does
// for a WasmPlugin, and prints the SHA-256 of each, or why it was refused.
package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"

	"istio.io/istio/pkg/wasm"
)

func main() {
	for _, image := range os.Args[1:] {
		module, err := fetch(image)
		if err != nil {
			fmt.Printf("%s refused: %q\n", image, err.Error())
			continue
		}
		fmt.Printf("%s %x\n", image, sha256.Sum256(module))
	}
}

func fetch(image string) ([]byte, error) {
	fetcher := wasm.NewImageFetcher(context.Background(), wasm.ImageFetcherOption{})
	get, _, err := fetcher.PrepareFetch(image)
	if err != nil {
		return nil, err
	}
	return get()
}
