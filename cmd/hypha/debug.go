package main

import (
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
)

// debugServer serves Go's profiles on an address of its own, for whoever may
// reach it: they show memory. A nil one serves nothing.
type debugServer struct {
	http     *http.Server
	listener net.Listener
}

// serveDebug starts one, if there is an address.
func serveDebug(address string) (*debugServer, error) {
	if address == "" {
		return nil, nil //nolint:nilnil // a nil server is one that serves nothing
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--debug-listen: %w", err)
	}
	d := &debugServer{http: &http.Server{Handler: profiles(), ReadHeaderTimeout: headerTimeout}, listener: listener}
	go func() { _ = d.http.Serve(listener) }() // ends with Close
	return d, nil
}

// stop ends it.
func (d *debugServer) stop() {
	if d != nil {
		_ = d.http.Close()
	}
}

func profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A page in the operator's browser may have its own name lead here: then that
		// name is the host, and no address.
		if !byAddress(r.Host) {
			http.Error(w, "Ask for the profiles by address, or as localhost", http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// byAddress reports whether a request's host is an address or localhost.
func byAddress(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	_, err := netip.ParseAddr(host)
	return err == nil || host == "localhost"
}
