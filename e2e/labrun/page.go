package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"

	"github.com/bodkin-net/bodkin/e2e"
)

const (
	// anyPort is for when another demo, or a rendezvous, has that port here.
	anyPort = "127.0.0.1:0"
	// pageTimeout is for a browser on this machine to send a request's head.
	pageTimeout = 5 * time.Second
)

// page makes the rendezvous' status page reachable from this machine: it takes
// requests on the machine's loopback and passes them into the lab.
type page struct {
	server *http.Server
	addr   net.Addr
	done   sync.WaitGroup
}

func openPage(ctx context.Context, host *e2e.Node) (*page, error) {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", e2e.StatusAddr)
	if err != nil {
		listener, err = lc.Listen(ctx, "tcp", anyPort)
	}
	if err != nil {
		return nil, fmt.Errorf("status page: %w", err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: e2e.StatusAddr}) },
		Transport: &http.Transport{DialContext: host.Dial},
		ErrorLog:  log.New(io.Discard, "", 0), // the browser is told, and a demo's screen is for the demo
	}
	p := &page{
		server: &http.Server{Handler: proxy, ReadHeaderTimeout: pageTimeout},
		addr:   listener.Addr(),
	}
	p.done.Go(func() {
		if err := p.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			slog.Error("status page", "err", err)
		}
	})
	return p, nil
}

// URL is the page's address in a browser on this machine.
func (p *page) URL() string { return "http://" + p.addr.String() + "/" }

// Close stops serving and waits for that.
func (p *page) Close() {
	p.server.Close()
	p.done.Wait()
}
