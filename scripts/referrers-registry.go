// The registry of go-containerregistry with its referrers API, which `crane registry serve` leaves out, on a free port of
// loopback. Blobs lie in the directory that is named.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"

	"github.com/google/go-containerregistry/pkg/registry"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(os.Stderr, "serving on port %d\n", listener.Addr().(*net.TCPAddr).Port)
	blobs := registry.WithBlobHandler(registry.NewDiskBlobHandler(os.Args[1]))
	panic(http.Serve(listener, registry.New(registry.WithReferrersSupport(true), blobs)))
}
