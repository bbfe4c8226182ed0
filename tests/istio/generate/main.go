// generate prints what Istio's control plane would send to given proxies.
//
// It reads a Request as JSON and writes the Answers as JSON, by the name of the
// proxy. A configuration that Istio does not know is an error here, as it is for an
// API server with Istio's resource definitions.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"google.golang.org/protobuf/proto"

	"istio.io/istio/pilot/pkg/config/kube/crd"
	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pilot/test/xds"
	"istio.io/istio/pkg/config/mesh"
	"istio.io/istio/pkg/log"
	"istio.io/istio/pkg/test"
	"istio.io/istio/pkg/util/protomarshal"
)

// Request is what to generate from, and for whom.
type Request struct {
	// Mesh is the mesh configuration, in YAML.
	Mesh string `json:"mesh"`
	// Istio is YAML of Istio's kinds.
	Istio string `json:"istio"`
	// IstioVersion is what the proxies say to be.
	IstioVersion string  `json:"istio_version"`
	Proxies      []Proxy `json:"proxies"`
}

// Proxy is a pod's proxy.
type Proxy struct {
	// Type is sidecar or router (a gateway).
	Type      model.NodeType    `json:"type"`
	Name      string            `json:"name"`
	Namespace string            `json:"namespace"`
	IP        string            `json:"ip"`
	Labels    map[string]string `json:"labels"`
}

// Answer is the configuration of one proxy.
type Answer struct {
	Listeners  []json.RawMessage `json:"listeners"`
	Clusters   []json.RawMessage `json:"clusters"`
	Routes     []json.RawMessage `json:"routes"`
	Endpoints  []json.RawMessage `json:"endpoints"`
	Extensions []json.RawMessage `json:"extensions"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run() error {
	quiet := log.DefaultOptions()
	quiet.OutputPaths = []string{"stderr"}
	for _, scope := range log.Scopes() {
		quiet.SetDefaultOutputLevel(scope.Name(), log.WarnLevel)
	}
	if err := log.Configure(quiet); err != nil {
		return err
	}

	var request Request
	if err := json.NewDecoder(os.Stdin).Decode(&request); err != nil {
		return fmt.Errorf("request: %w", err)
	}
	_, unknown, err := crd.ParseInputs(request.Istio)
	if err != nil {
		return err
	}
	if len(unknown) > 0 {
		var names []string
		for _, kind := range unknown {
			names = append(names, kind.APIVersion+" "+kind.Kind)
		}
		return fmt.Errorf("not a kind that Istio knows: %s", strings.Join(names, ", "))
	}
	meshConfig, err := mesh.ApplyMeshConfigDefaults(request.Mesh)
	if err != nil {
		return err
	}

	answers := map[string]Answer{}
	err = test.Wrap(func(t test.Failer) {
		server := xds.NewFakeDiscoveryServer(t, xds.FakeOptions{ConfigString: request.Istio, MeshConfig: meshConfig})
		for _, wanted := range request.Proxies {
			answers[wanted.Name] = answer(t, server, wanted, request.IstioVersion)
		}
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(answers)
}

func answer(t test.Failer, server *xds.FakeDiscoveryServer, wanted Proxy, version string) Answer {
	proxy := server.SetupProxy(&model.Proxy{
		Type:            wanted.Type,
		ID:              wanted.Name + "." + wanted.Namespace,
		ConfigNamespace: wanted.Namespace,
		IPAddresses:     []string{wanted.IP},
		Labels:          wanted.Labels,
		Metadata: &model.NodeMetadata{
			Namespace:    wanted.Namespace,
			Labels:       wanted.Labels,
			IstioVersion: version,
			ClusterID:    "Kubernetes",
			ProxyConfig:  (*model.NodeMetaProxyConfig)(server.Env().Mesh().GetDefaultConfig()),
		},
	})
	listeners := server.Listeners(proxy)
	described := raw(t, listeners)
	names := discovered(t, described)
	extensions := server.ConfigGen.BuildExtensionConfiguration(proxy, server.PushContext(), names, nil)
	return Answer{
		Listeners:  described,
		Clusters:   raw(t, server.Clusters(proxy)),
		Routes:     raw(t, server.RoutesFromListeners(proxy, listeners)),
		Endpoints:  raw(t, server.Endpoints(proxy)),
		Extensions: raw(t, extensions),
	}
}

// discovered is the names of the extensions that the listeners ask for, at whatever
// depth: Envoy would ask for the same ones.
func discovered(t test.Failer, listeners []json.RawMessage) []string {
	var names []string
	var walk func(value any)
	walk = func(value any) {
		switch value := value.(type) {
		case []any:
			for _, item := range value {
				walk(item)
			}
		case map[string]any:
			if name, ok := value["name"].(string); ok && value["config_discovery"] != nil {
				names = append(names, name)
			}
			for _, item := range value {
				walk(item)
			}
		}
	}
	for _, listener := range listeners {
		var value any
		if err := json.Unmarshal(listener, &value); err != nil {
			t.Fatal(err)
		}
		walk(value)
	}
	return names
}

func raw[T proto.Message](t test.Failer, messages []T) []json.RawMessage {
	described := []json.RawMessage{}
	for _, message := range messages {
		text, err := protomarshal.MarshalProtoNames(message)
		if err != nil {
			t.Fatalf("%v: %v", message, err)
		}
		described = append(described, text)
	}
	return described
}
