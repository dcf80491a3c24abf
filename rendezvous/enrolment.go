package rendezvous

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous/enrol"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

const (
	// maxJoin bounds the body of a join or renewal: a request with an RSA key of
	// 16384 bits and all the subnets a node may have is below 10 kB.
	maxJoin = 32 << 10
	// joinTimeout bounds one of them, of which the hub's and the disk's part take
	// milliseconds.
	joinTimeout = 15 * time.Second
	// approvalRetry is when a node that waits for approval shall ask again: the
	// operator who approves it is watching.
	approvalRetry = 10 * time.Second
)

// newAuthority is who decides on nodes, as configured.
func newAuthority(cfg Config, s *store.Store, log *slog.Logger) (*enrol.Authority, error) {
	rules, err := cfg.enrolment()
	if err != nil {
		return nil, err
	}
	ca, err := cfg.issuer()
	if err != nil {
		return nil, err
	}
	a := enrol.New(s, ca, rules)
	if _, err := a.Maintain(time.Now()); err != nil {
		// A full disk is no reason to keep everybody out.
		log.Error("no list of the revoked yet: it is tried again", "err", err)
	}
	return a, nil
}

// enrolment are the rules of joining.
func (c Config) enrolment() (enrol.Rules, error) {
	lifetime, err := c.certificateLifetime()
	return enrol.Rules{Manual: c.Approval == ApprovalManual, Lifetime: lifetime, MayConnect: c.mayConnect}, err
}

// issuer is the CA with its key, nil where that is not configured.
func (c Config) issuer() (*pki.CA, error) {
	if c.CAKey == "" {
		return nil, nil //nolint:nilnil // an existing CA is used without its key
	}
	cert, err := os.ReadFile(c.CA)
	if err != nil {
		return nil, fmt.Errorf("%w: ca: %w", ErrConfig, err)
	}
	key, err := os.ReadFile(c.CAKey)
	if err != nil {
		return nil, fmt.Errorf("%w: caKey: %w", ErrConfig, err)
	}
	ca, err := pki.ParseCA(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%w: ca %s, caKey %s: %w", ErrConfig, c.CA, c.CAKey, err)
	}
	return ca, nil
}

// agentHandler is what the listener for agents serves.
func (s *Server) agentHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/agent", s.serveAgent)
	mux.HandleFunc("GET "+wire.PathCA, s.serveCA)
	mux.HandleFunc("GET "+wire.PathCRL, s.serveCRL)
	mux.HandleFunc("POST "+wire.PathJoin, s.serveJoin)
	mux.HandleFunc("POST "+wire.PathRenew, s.serveRenew)
	return mux
}

// serveCA gives the certificate that join tokens hold the hash of, or with an
// existing CA all that are trusted.
func (s *Server) serveCA(w http.ResponseWriter, _ *http.Request) {
	var certs []*x509.Certificate
	if ca := s.authority.CA; ca != nil {
		certs = append(certs, ca.Certificate)
	} else {
		text, err := os.ReadFile(s.cfg.CA)
		if err == nil {
			certs, err = pki.ParseCertificates(text)
		}
		if err != nil {
			s.answerJoin(w, nil, err)
			return
		}
	}
	w.Header().Set("Content-Type", "application/x-pem-file")
	for _, cert := range certs { // and not the file: some keep the key in it, too
		_, _ = w.Write(pki.EncodeCertificate(cert.Raw))
	}
}

func (s *Server) serveCRL(w http.ResponseWriter, _ *http.Request) {
	crl := s.authority.CRL()
	if crl == nil {
		answerError(w, http.StatusNotFound, enrol.ErrNotIssuing)
		return
	}
	w.Header().Set("Content-Type", "application/pkix-crl") // RFC 2585
	_, _ = w.Write(crl)
}

func (s *Server) serveJoin(w http.ResponseWriter, r *http.Request) {
	var request wire.JoinRequest
	if !readJoin(w, r, &request) {
		return
	}
	now, from := time.Now(), sourceOf(r)
	var err error
	// Only the secret is checked there: the limiter has others wait meanwhile.
	wait, _ := s.joins.Check(from, now, func() bool {
		err = s.authority.Authenticate(request.TokenID, request.Secret)
		return !errors.Is(err, enrol.ErrToken)
	})
	if wait > 0 {
		retryAfter(w, wait)
		answerError(w, http.StatusTooManyRequests, fmt.Errorf("too many wrong join tokens from %s: wait %s", from, wait.Round(time.Second)))
		return
	}
	if err != nil {
		s.log.Warn("join refused", "from", from, "token", wire.Clip(request.TokenID), "err", err)
		s.answerJoin(w, nil, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), joinTimeout)
	defer cancel()
	answer, replaced, err := s.authority.Join(ctx, now, from.String(), &request, s.hub)
	if err != nil {
		s.log.Warn("join refused", "from", from, "node", wire.Clip(string(request.Name)), "token", wire.Clip(request.TokenID), "err", err)
		s.answerJoin(w, nil, err)
		return
	}
	s.log.Info("node has a certificate", "node", answer.Name, "from", from, "token", request.TokenID, "pending", answer.Pending, "replaced", replaced)
	if replaced {
		s.distribute(ctx)
	}
	if err := s.reconsider(ctx, answer.Name, ""); err != nil {
		s.answerJoin(w, nil, err)
		return
	}
	state := store.Approved
	if answer.Pending {
		state = store.Pending
	}
	s.events.add(now, EventView{Kind: EventNode, Node: answer.Name, State: string(state), Text: string(answer.Name) + " has joined with token " + request.TokenID})
	s.answerJoin(w, answer, nil)
}

func (s *Server) serveRenew(w http.ResponseWriter, r *http.Request) {
	present, ok := s.presented(w, r)
	if !ok {
		return
	}
	var request wire.RenewRequest
	if !readJoin(w, r, &request) {
		return
	}
	answer, err := s.authority.Renew(time.Now(), sourceOf(r).String(), present, &request)
	if err != nil {
		s.log.Warn("renewal refused", "node", present.Name, "err", err)
		s.answerJoin(w, nil, err)
		return
	}
	s.log.Info("node has renewed its certificate", "node", present.Name)
	s.answerJoin(w, answer, nil)
}

// presented is the node a request is from, by its certificate; ok is false when
// that was answered.
func (s *Server) presented(w http.ResponseWriter, r *http.Request) (_ enrol.Presented, ok bool) {
	cert := clientCertificate(r)
	if cert == nil {
		answerError(w, http.StatusUnauthorized, errors.New("a client certificate is required"))
		return enrol.Presented{}, false
	}
	present, err := enrol.Present(cert)
	if err != nil {
		answerError(w, http.StatusForbidden, err)
		return enrol.Presented{}, false
	}
	return present, true
}

// clientCertificate is what the client has proved to be, nil for nothing.
func clientCertificate(r *http.Request) *x509.Certificate {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return nil
	}
	return r.TLS.VerifiedChains[0][0]
}

// readJoin reads a body, in which a newer agent may have fields that are not known
// here; ok is false when what is wrong was answered.
func readJoin(w http.ResponseWriter, r *http.Request, into any) (ok bool) {
	// Whoever sends a body a byte at a time shall not hold a connection for ever.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(joinTimeout))
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxJoin))
	err := dec.Decode(into)
	if err == nil && dec.More() {
		err = errors.New("more than one JSON value")
	}
	var large *http.MaxBytesError
	switch {
	case err == nil:
		return true
	case errors.As(err, &large):
		answerError(w, http.StatusRequestEntityTooLarge, fmt.Errorf("the body is larger than %d bytes", large.Limit))
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		answerError(w, http.StatusUnprocessableEntity, errors.New("the body is no JSON: it ends too early"))
	default:
		answerError(w, http.StatusUnprocessableEntity, fmt.Errorf("the body: %w", err))
	}
	return false
}

// answerJoin answers with v, or with err if there is one.
func (s *Server) answerJoin(w http.ResponseWriter, v any, err error) {
	if err == nil {
		var body *bytes.Buffer
		if body, err = encode(v); err == nil {
			w.Header().Set("Content-Type", "application/json")
			_, _ = body.WriteTo(w) // a client that is gone needs no answer
			return
		}
	}
	status := http.StatusInternalServerError
	for _, known := range []struct {
		err    error
		status int
	}{
		{enrol.ErrToken, http.StatusUnauthorized},
		{enrol.ErrRevoked, http.StatusForbidden},
		{enrol.ErrPending, http.StatusForbidden},
		{enrol.ErrRefused, http.StatusForbidden},
		{enrol.ErrConflict, http.StatusConflict},
		{enrol.ErrNotIssuing, http.StatusConflict},
		{enrol.ErrInvalid, http.StatusUnprocessableEntity},
		{errStopped, http.StatusServiceUnavailable},
		{context.Canceled, http.StatusServiceUnavailable},
		{context.DeadlineExceeded, http.StatusServiceUnavailable},
	} {
		if errors.Is(err, known.err) {
			status = known.status
			break
		}
	}
	if status == http.StatusInternalServerError {
		s.log.Error("join or renewal failed", "err", err)
		err = errors.New("the rendezvous could not write its store: see its log") // whose path is not everybody's business
	}
	if errors.Is(err, enrol.ErrPending) {
		retryAfter(w, approvalRetry)
	}
	answerError(w, status, err)
}

// answerError is every answer of this listener that is no success.
func answerError(w http.ResponseWriter, status int, err error) {
	b, _ := json.Marshal(apiError{Error: wire.Clip(err.Error())}) // a string always marshals
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}

func retryAfter(w http.ResponseWriter, wait time.Duration) {
	w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
}

// sourceOf is the address a request came from.
func sourceOf(r *http.Request) netip.Addr {
	at, _ := netip.ParseAddrPort(r.RemoteAddr) // the zero address for none
	return at.Addr().Unmap()
}
