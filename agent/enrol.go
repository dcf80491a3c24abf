package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

const (
	// enrolTimeout bounds one request for a certificate: the rendezvous signs in
	// milliseconds and writes to its disk.
	enrolTimeout = 10 * time.Second
	// maxAnswer is above every answer: a certificate and its CA are some kB.
	maxAnswer = 1 << 20
)

// ErrUnreachable marks that the rendezvous was not spoken to.
var ErrUnreachable = errors.New("the rendezvous cannot be reached")

// RefusedError is the rendezvous' refusal in its own words.
type RefusedError struct {
	Status int // of HTTP
	Words  string
	// RetryAfter is how long it asks to wait, 0 if it does not (RFC 9110 section
	// 10.2.3).
	RetryAfter time.Duration
}

func (e *RefusedError) Error() string { return "the rendezvous refuses: " + e.Words }

// Enrolment is the rendezvous where certificates are asked for, over HTTPS.
type Enrolment struct {
	Host string // with port
	TLS  *tls.Config
	// Dial opens TCP connections, nil for net.Dialer's.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Get fetches what is at a path.
func (e Enrolment) Get(ctx context.Context, path string) ([]byte, error) {
	return e.call(ctx, http.MethodGet, path, nil)
}

// Post sends a request as JSON and decodes the answer into out.
func (e Enrolment) Post(ctx context.Context, path string, request, out any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	answer, err := e.call(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("https://%s%s answers what is no answer: %w", e.Host, path, err)
	}
	return nil
}

func (e Enrolment) call(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, enrolTimeout)
	defer cancel()
	client := http.Client{
		Transport: &http.Transport{TLSClientConfig: e.TLS, DialContext: e.Dial, DisableKeepAlives: true},
		// A rendezvous does not redirect; who does is somebody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+e.Host+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, e.explain(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, e.explain(err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, refusal(resp, answer)
	}
	return answer, nil
}

// refusal is what an answer other than the one hoped for says.
func refusal(resp *http.Response, body []byte) *RefusedError {
	var said struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(body, &said) != nil || said.Error == "" {
		said.Error = "it answers " + resp.Status
		if line, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n"); line != "" && len(line) < 200 && line[0] != '<' {
			said.Error += ": " + line
		}
	}
	// It goes to a terminal, and may be of somebody in between.
	said.Error = wire.Clip(said.Error)
	seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After")) // a date is not understood
	return &RefusedError{Status: resp.StatusCode, Words: said.Error, RetryAfter: time.Duration(max(seconds, 0)) * time.Second}
}

// explain says why the rendezvous was not reached, and what to do.
func (e Enrolment) explain(err error) error {
	at := "https://" + e.Host
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		const layout = time.DateTime
		return fmt.Errorf("the certificate of %s is valid from %s to %s, and this machine's clock says %s: set the clock, or renew that certificate",
			at, invalid.Cert.NotBefore.UTC().Format(layout), invalid.Cert.NotAfter.UTC().Format(layout), time.Now().UTC().Format(layout))
	}
	if name, ok := errors.AsType[x509.HostnameError](err); ok {
		return fmt.Errorf("the certificate of %s is for %s: use one of these in the URL", at, namesOf(name.Certificate))
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return fmt.Errorf("the certificate of %s is not signed by the CA that this node trusts: somebody is in between, or it is another rendezvous'", at)
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok || errors.Is(err, http.ErrSchemeMismatch) {
		return fmt.Errorf("%w at %s: what answers there speaks no TLS: want the port of signalling, 7443 unless `listen` says otherwise", ErrUnreachable, at)
	}
	if alert, ok := errors.AsType[tls.AlertError](err); ok {
		return fmt.Errorf("%s ends the handshake: %w", at, alert)
	}
	why := err
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		why = fmt.Errorf("no address for %s", dns.Name)
	} else if errno, ok := errors.AsType[syscall.Errno](err); ok {
		why = errno
	} else if errors.Is(err, context.DeadlineExceeded) {
		why = errors.New("no answer")
	}
	return fmt.Errorf("%w at %s: %w: is it running, and does TCP to it pass?", ErrUnreachable, at, why)
}

// namesOf is where a server's certificate says that it is.
func namesOf(cert *x509.Certificate) string {
	names := append([]string{}, cert.DNSNames...)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 {
		return "no address at all"
	}
	return wire.Clip(strings.Join(names, ", "))
}
