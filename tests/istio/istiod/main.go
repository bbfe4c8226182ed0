// istiod runs Istio's control plane, what `pilot-discovery discovery` runs, without
// Kubernetes: its configuration is a directory of YAML files, which it watches.
//
// pilot-discovery itself takes no cluster only on paper: without one it ends in a
// nil dereference. So the server gets a client of a cluster in which there is
// nothing. The field for it is private, and set here by its name.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"reflect"
	"syscall"
	"unsafe"

	"istio.io/istio/pilot/pkg/bootstrap"
	"istio.io/istio/pilot/pkg/config/kube/extensions"
	"istio.io/istio/pilot/pkg/config/kube/file"
	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pilot/pkg/serviceregistry/kube/controller"
	"istio.io/istio/pkg/config/schema/collections"
	"istio.io/istio/pkg/kube"
	"istio.io/istio/pkg/kube/krt"
)

const domain = "cluster.local"

func main() {
	directory := flag.String("directory", "", "configuration, watched")
	mesh := flag.String("mesh", "", "file with the mesh configuration")
	address := flag.String("address", "127.0.0.1", "where to listen: xDS on port 15010")
	flag.Parse()
	if err := run(*directory, *mesh, *address); err != nil {
		fmt.Fprintln(os.Stderr, "istiod:", err)
		os.Exit(1)
	}
}

func run(directory, mesh, address string) error {
	arguments := bootstrap.NewPilotArgs(func(arguments *bootstrap.PilotArgs) {
		arguments.Namespace = "istio-system"
		arguments.MeshConfigFile = mesh
		arguments.NetworksConfigFile = "/nonexistent"
		arguments.RegistryOptions.FileDir = directory
		arguments.RegistryOptions.Registries = []string{}
		arguments.RegistryOptions.KubeOptions = controller.Options{DomainSuffix: domain, ClusterID: "Kubernetes"}
		arguments.KrtDebugger = krt.GlobalDebugHandler
		arguments.ServerOptions.GRPCAddr = address + ":15010"
		arguments.ServerOptions.HTTPAddr = address + ":8080"
		arguments.ServerOptions.MonitoringAddr = address + ":15014"
		arguments.ServerOptions.HTTPSAddr = ""
		arguments.ServerOptions.SecureGRPCAddr = ""
		arguments.InjectionOptions.InjectionDirectory = "/nonexistent"
		arguments.ShutdownDuration = 1
	})
	var failed error
	server, err := bootstrap.NewServer(arguments, func(server *bootstrap.Server) {
		failed = withoutCluster(server, directory)
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	if err := server.Start(stop); err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	<-signals
	return nil
}

func withoutCluster(server *bootstrap.Server, directory string) error {
	field := reflect.ValueOf(server).Elem().FieldByName("kubeClient")
	if !field.IsValid() {
		return fmt.Errorf("this Istio's bootstrap.Server has no field kubeClient")
	}
	var client kube.Client = kube.NewFakeClient()
	reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem().Set(reflect.ValueOf(client))

	// What translates WasmPlugins is only set up for a store in a cluster.
	files, err := file.NewController(directory, domain, collections.Pilot, controller.Options{KrtDebugger: krt.GlobalDebugHandler})
	if err != nil {
		return err
	}
	translated := extensions.NewController(files, &updater{server: server}, krt.GlobalDebugHandler)
	server.ConfigStores = append(server.ConfigStores, translated)
	return nil
}

// updater passes updates on to the xDS server, which is made after its stores.
type updater struct {
	model.XDSUpdater
	server *bootstrap.Server
}

func (u *updater) ConfigUpdate(request *model.PushRequest) {
	if u.server.XDSServer != nil {
		u.server.XDSServer.ConfigUpdate(request)
	}
}
