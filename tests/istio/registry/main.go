// registry serves container images from memory, and pushes the module to a registry
// in each of the forms that Istio takes.
//
//	registry serve HOST:PORT
//	registry push FORM FILE HOST:PORT/REPOSITORY:TAG
//
// The forms are docker, oci (an image of one layer with the file as /plugin.wasm)
// and artifact (the file itself as a layer). It prints the digest of what it pushed.
package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	wasmConfig = types.MediaType("application/vnd.module.wasm.config.v1+json")
	wasmLayer  = types.MediaType("application/vnd.module.wasm.content.layer.v1+wasm")
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	switch {
	case len(arguments) == 2 && arguments[0] == "serve":
		return http.ListenAndServe(arguments[1], registry.New())
	case len(arguments) == 4 && arguments[0] == "push":
		return push(arguments[1], arguments[2], arguments[3])
	}
	return fmt.Errorf("usage: registry serve ADDRESS | registry push FORM FILE REFERENCE")
}

func push(form, file, reference string) error {
	module, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	image, err := build(form, module)
	if err != nil {
		return err
	}
	to, err := name.ParseReference(reference, name.Insecure)
	if err != nil {
		return err
	}
	if err := remote.Write(to, image); err != nil {
		return err
	}
	digest, err := image.Digest()
	if err != nil {
		return err
	}
	fmt.Println(digest.Hex)
	return nil
}

func build(form string, module []byte) (v1.Image, error) {
	switch form {
	case "docker":
		layer, err := tarball.LayerFromOpener(tarred(module))
		if err != nil {
			return nil, err
		}
		return mutate.AppendLayers(empty.Image, layer)
	case "oci":
		layer, err := tarball.LayerFromOpener(tarred(module), tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return nil, err
		}
		image := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
		return mutate.AppendLayers(mutate.ConfigMediaType(image, types.OCIConfigJSON), layer)
	case "artifact":
		image := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
		return mutate.AppendLayers(mutate.ConfigMediaType(image, wasmConfig),
			static.NewLayer(module, wasmLayer),
			// Istio takes two layers, and looks at one of them.
			static.NewLayer([]byte("runtime_config"), types.MediaType("application/octet-stream")))
	}
	return nil, fmt.Errorf("no form %q", form)
}

func tarred(module []byte) tarball.Opener {
	return func() (io.ReadCloser, error) {
		var archive bytes.Buffer
		writer := tar.NewWriter(&archive)
		header := &tar.Header{Name: "plugin.wasm", Mode: 0o644, Size: int64(len(module))}
		if err := writer.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := writer.Write(module); err != nil {
			return nil, err
		}
		if err := writer.Close(); err != nil {
			return nil, err
		}
		return io.NopCloser(&archive), nil
	}
}
