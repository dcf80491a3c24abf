package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/rendezvous"
)

const (
	// clientTimeout bounds one request: the API's own slowest answer, another
	// node's, is given up after 5 s.
	clientTimeout = 10 * time.Second
	// clientDial bounds what comes before it: TCP and TLS with a server that may be
	// on the other side of the world.
	clientDial = 5 * time.Second
	// clientAnswer bounds an answer, in bytes: above the 44,850 pairs of 300 nodes.
	clientAnswer = 256 << 20
)

// Environment of the commands that talk to a rendezvous.
const (
	envServer = "BODKIN_SERVER"
	envToken  = "BODKIN_TOKEN"
	envCA     = "BODKIN_CA"
)

// client talks to one daemon's API: an agent's or a rendezvous', over its unix
// socket or over HTTPS. It may be used by several goroutines.
type client struct {
	who, where string // "the rendezvous", and its socket or URL: for errors
	base       string
	token      string
	http       *http.Client
}

// agentFlags say where this machine's agent is.
type agentFlags struct{ socket string }

func (f *agentFlags) register(cmd *cobra.Command) {
	cmd.PersistentFlags().StringVar(&f.socket, "socket", agent.DefaultConfig().Socket, "the agent's unix socket")
}

func (f *agentFlags) client() *client { return socketClient("the agent", f.socket) }

// rendezvousFlags say where the rendezvous is and who asks.
type rendezvousFlags struct {
	socket, server, tokenFile, ca string
	certificate, key              string
	socketGiven                   func() bool
}

// register adds the flags to a command and to those below it.
func (f *rendezvousFlags) register(cmd *cobra.Command) { f.registerAs(cmd, "socket") }

// registerAs is register for a command whose --socket is the agent's.
func (f *rendezvousFlags) registerAs(cmd *cobra.Command, socket string) {
	flags := cmd.PersistentFlags()
	flags.StringVar(&f.socket, socket, rendezvous.DefaultConfig().AdminSocket, "the rendezvous' unix socket, on its machine")
	flags.StringVar(&f.server, "server", "", "a rendezvous elsewhere, https://HOST:7480 ($"+envServer+")")
	flags.StringVar(&f.tokenFile, "token-file", "", "file with the access token for --server ($"+envToken+" is the token itself)")
	flags.StringVar(&f.ca, "ca", "", "CA that --server is checked with ($"+envCA+"; this node's, or else the system's)")
	flags.StringVar(&f.certificate, "cert", "", "admin certificate for --server, instead of a token")
	flags.StringVar(&f.key, "key", "", "key of --cert")
	f.socketGiven = func() bool { return flags.Changed(socket) }
}

// nodeCA is where `bodkin join` leaves the CA of the rendezvous.
const nodeCA = "/etc/bodkin/ca.crt"

// client is the client for what the flags and the environment say.
func (f *rendezvousFlags) client() (*client, error) {
	if f.server != "" && f.socketGiven() {
		return nil, usageError{errors.New("--server and --socket: want one of them")}
	}
	server := f.server
	if server == "" && !f.socketGiven() {
		server = os.Getenv(envServer)
	}
	if server == "" {
		return socketClient(theRendezvous, f.socket), nil
	}
	c, err := f.remote(server)
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

func (f *rendezvousFlags) remote(server string) (*client, error) {
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || strings.Trim(u.Path, "/") != "" || u.User != nil {
		return nil, fmt.Errorf("--server %q: want https://HOST:PORT", server)
	}
	token, err := f.token()
	if err != nil {
		return nil, err
	}
	if u.Scheme == "http" && token != "" && !loopback(u.Hostname()) {
		return nil, fmt.Errorf("--server %s: the token would cross the network for all to read: want https", server)
	}
	config, err := f.tls()
	if err != nil {
		return nil, err
	}
	return &client{
		who: theRendezvous, where: server, base: u.Scheme + "://" + u.Host, token: token,
		http: newHTTPClient(&http.Transport{
			TLSClientConfig: config, TLSHandshakeTimeout: clientDial,
			DialContext: (&net.Dialer{Timeout: clientDial}).DialContext,
		}),
	}, nil
}

func (f *rendezvousFlags) token() (string, error) {
	if f.tokenFile == "" {
		return strings.TrimSpace(os.Getenv(envToken)), nil
	}
	b, err := os.ReadFile(f.tokenFile)
	if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func (f *rendezvousFlags) tls() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if (f.certificate == "") != (f.key == "") {
		return nil, errors.New("--cert and --key: want both or neither")
	}
	if f.certificate != "" {
		pair, err := tls.LoadX509KeyPair(f.certificate, f.key)
		if err != nil {
			return nil, fmt.Errorf("--cert: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	file := cmp.Or(f.ca, os.Getenv(envCA))
	pem, err := os.ReadFile(cmp.Or(file, nodeCA))
	switch {
	case err != nil && file == "":
		return config, nil // no node of this rendezvous: the system's CAs
	case err != nil:
		return nil, fmt.Errorf("--ca: %w", err)
	}
	config.RootCAs = x509.NewCertPool()
	if file == "" {
		if config.RootCAs, err = x509.SystemCertPool(); err != nil {
			config.RootCAs = x509.NewCertPool()
		}
	}
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificate in it", cmp.Or(file, nodeCA))
	}
	return config, nil
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// socketBase is the host of requests over a unix socket, which nobody resolves.
const socketBase = "http://bodkin"

// theRendezvous is what errors call it.
const theRendezvous = "the rendezvous"

// socketClient talks to the daemon on a unix socket.
func socketClient(who, socket string) *client {
	return &client{
		who: who, where: socket, base: socketBase,
		http: newHTTPClient(&http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			},
		}),
	}
}

func newHTTPClient(t *http.Transport) *http.Client {
	t.DisableKeepAlives = true // a command asks once or twice
	return &http.Client{
		Transport: t,
		// A redirect would take the token elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// get asks for path, which is escaped already, and decodes the answer into out.
func (c *client) get(ctx context.Context, path string, query url.Values, out any) error {
	return c.do(ctx, http.MethodGet, path, query, nil, out)
}

// do sends one request. The body in is sent as it is if it is []byte, as JSON
// otherwise, nil for none; the answer's JSON goes to out unless that is nil.
// Errors are of the kinds that exitCode knows.
func (c *client) do(ctx context.Context, method, path string, query url.Values, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	resp, err := c.open(ctx, method, path, query, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, clientAnswer))
	if err != nil {
		return c.unreachable(err)
	}
	if out == nil || resp.StatusCode == http.StatusNoContent {
		return nil
	}
	if raw, ok := out.(*[]byte); ok {
		*raw = b
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s on %s: the answer to %s is not understood: %w", c.who, c.where, path, err)
	}
	return nil
}

// open sends a request and returns a good answer, for the caller to read and
// close.
func (c *client) open(ctx context.Context, method, path string, query url.Values, in any) (*http.Response, error) {
	body, isRaw := in.([]byte)
	if in != nil && !isRaw {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return nil, err
		}
	}
	u := c.base + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if in != nil && !isRaw {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16)) // what is there is said
	return nil, c.refusal(resp.StatusCode, b)
}

// unreachable says why there is no answer.
func (c *client) unreachable(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // without the URL, which is the client's own for a socket
	}
	if c.base == socketBase && c.who == theRendezvous && errors.Is(err, fs.ErrNotExist) {
		return unreachableError{fmt.Errorf("no rendezvous runs on this machine (there is no %s): ask there, or name one with --server https://HOST:7480", c.where)}
	}
	hint := ""
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
		hint = ": is it running"
		if c.base == socketBase {
			hint += ", and may you use its socket"
		}
		hint += "?"
	}
	if errors.Is(err, os.ErrPermission) {
		return refusedError{fmt.Errorf("%s: %w: run as root (sudo)", c.where, err)}
	}
	return unreachableError{fmt.Errorf("%s does not answer on %s: %w%s", c.who, c.where, err, hint)}
}

// httpToHTTPS is how net/http answers plain HTTP where it expects TLS.
const httpToHTTPS = "Client sent an HTTP request to an HTTPS server"

// refusal is the daemon's own words.
func (c *client) refusal(status int, body []byte) error {
	var e struct {
		Error string `json:"error"`
	}
	if bytes.HasPrefix(body, []byte(httpToHTTPS)) {
		return usageError{fmt.Errorf("%s on %s speaks TLS: want https://", c.who, c.where)}
	}
	if json.Unmarshal(body, &e) != nil || e.Error == "" {
		e.Error = fmt.Sprintf("%s on %s: %s", c.who, c.where, cmp.Or(http.StatusText(status), fmt.Sprint(status)))
	}
	err := errors.New(e.Error)
	switch status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return usageError{err}
	case http.StatusUnauthorized:
		return refusedError{fmt.Errorf("%w (--token-file FILE or $%s)", err, envToken)}
	case http.StatusForbidden, http.StatusTooManyRequests:
		return refusedError{err}
	case http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return unreachableError{err}
	}
	return err
}

// segment is name as one segment of a path.
func segment(name string) string { return "/" + url.PathEscape(name) }
