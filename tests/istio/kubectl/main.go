// kubectl is Kubernetes' kubectl, as its own main function makes it. The commands of
// the documentation that need no cluster (kustomize, patch --local, create
// --dry-run=client) are tested with it.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
)

func main() {
	os.Exit(cli.Run(cmd.NewDefaultKubectlCommand()))
}
