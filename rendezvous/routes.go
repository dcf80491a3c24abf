package rendezvous

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/rendezvous/enrol"
	"github.com/bodkin-net/bodkin/rendezvous/page"
	"github.com/bodkin-net/bodkin/store"
)

var (
	// errInvalid marks a request that cannot be meant as it is.
	errInvalid = errors.New("invalid request")
	// errTooMany marks a question whose answer would be too large.
	errTooMany = errors.New("too many")
	// errNoAnswer says that a node did not answer in time.
	errNoAnswer = errors.New("no answer")
)

const (
	// maxBody bounds the body of a request, in bytes: that of a file of communities.
	maxBody = maxCommunityFile
	// gzipFrom is from which size on an answer is worth compressing, in bytes: what
	// a packet or two carry is not.
	gzipFrom = 2048
)

// apiError is every answer of the API that is no success.
type apiError struct {
	Error string `json:"error"`
}

// front is what all routes of one listener have in common.
type front struct {
	// identify tells whom a request is from.
	identify func(*http.Request) (access.Caller, error)
	metrics  *metrics
}

// handler serves routes. What changes something is refused when a page of another
// site has a browser send it.
func (f *front) handler(routes []route) http.Handler {
	mux := http.NewServeMux()
	for _, rt := range routes {
		mux.Handle(rt.method+" "+rt.pattern, f.serve(rt))
	}
	crossOrigin := http.NewCrossOriginProtection()
	crossOrigin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fail(w, r, http.StatusForbidden, "sent by a page of another site")
	}))
	return harden(crossOrigin.Handler(mux))
}

// serve is one route: who asks, may they, and the answer.
func (f *front) serve(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		defer func() {
			f.metrics.requests.WithLabelValues(rt.method, rt.pattern, strconv.Itoa(out.status)).Inc()
		}()
		r, err := f.admit(r, rt.role)
		var answer any
		if err == nil {
			r.Body = http.MaxBytesReader(out, r.Body, maxBody+1) // one more is said to be too much
			answer, err = rt.handle(r)
		}
		respond(out, r, answer, err)
	})
}

// admit puts the caller into the request, if they may have what asks for need.
func (f *front) admit(r *http.Request, need access.Role) (*http.Request, error) {
	if need == access.Nobody {
		return r, nil
	}
	identify := func() (access.Caller, error) {
		caller, err := f.identify(r)
		if err == nil && !caller.Role.Permits(need) {
			err = fmt.Errorf("%w: %s may read only: this asks for a credential of role %s, or the rendezvous' own unix socket", access.ErrForbidden, caller.Who, need)
		}
		return caller, err
	}
	caller, err := identify()
	if err != nil {
		return r, err
	}
	ctx := access.WithCaller(r.Context(), caller)
	ctx = context.WithValue(ctx, mayKey{}, func() bool { _, err := identify(); return err == nil })
	return r.WithContext(ctx), nil
}

type mayKey struct{}

// stillMay tells, later on, whether a request would be let in again.
func stillMay(ctx context.Context) func() bool {
	may, _ := ctx.Value(mayKey{}).(func() bool)
	return may
}

// statusWriter remembers the status for the metrics.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// respond writes what a route came to. An answer that is a http.Handler writes
// itself.
func respond(w http.ResponseWriter, r *http.Request, answer any, err error) {
	if err != nil {
		refuse401(w, err)
		fail(w, r, statusOf(err), err.Error())
		return
	}
	if h, ok := answer.(http.Handler); ok {
		h.ServeHTTP(w, r)
		return
	}
	if answer == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	body, err := encode(answer)
	if err != nil {
		fail(w, r, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Vary", "Accept-Encoding")
	if body.Len() >= gzipFrom && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		w.Header().Set("Content-Encoding", "gzip")
		zipped, _ := gzip.NewWriterLevel(w, gzip.BestSpeed) // a level that exists
		_, _ = body.WriteTo(zipped)
		_ = zipped.Close()
		return
	}
	_, _ = body.WriteTo(w) // a client that is gone needs no answer
}

// encode is JSON that people can read, too.
func encode(v any) (*bytes.Buffer, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	err := enc.Encode(v)
	return &b, err
}

// refuse401 says how to get in. A challenge for Basic would have browsers ask by
// themselves, over the page's own login.
func refuse401(w http.ResponseWriter, err error) {
	var limited *access.LimitedError
	switch {
	case errors.As(err, &limited):
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(limited.Wait.Seconds()))))
	case errors.Is(err, access.ErrUnauthenticated):
		w.Header().Set("WWW-Authenticate", `Bearer realm="bodkin rendezvous"`)
	}
}

func statusOf(err error) int {
	var file *CommunityError
	var limited *access.LimitedError
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &limited):
		return http.StatusTooManyRequests
	case errors.Is(err, access.ErrUnauthenticated):
		return http.StatusUnauthorized
	case errors.Is(err, access.ErrForbidden):
		return http.StatusForbidden
	case errors.As(err, &file), errors.As(err, &large), errors.Is(err, errInvalid), errors.Is(err, errTooMany), errors.Is(err, enrol.ErrInvalid):
		return http.StatusUnprocessableEntity
	case errors.Is(err, store.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, ErrConflict), errors.Is(err, enrol.ErrConflict), errors.Is(err, enrol.ErrNotIssuing):
		return http.StatusConflict
	case errors.Is(err, errNoAnswer):
		return http.StatusGatewayTimeout
	case errors.Is(err, errStopped), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// fail answers in the form that belongs to the path.
func fail(w http.ResponseWriter, r *http.Request, status int, message string) {
	if !strings.HasPrefix(r.URL.Path, "/api/") {
		http.Error(w, message, status)
		return
	}
	b, _ := json.Marshal(apiError{Error: message}) // a string always marshals
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}

// harden sets the headers that keep a browser from doing with these pages
// anything but showing them.
func harden(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", page.Policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// body decodes a request's body, strictly: what is not known is a mistake that
// would otherwise go unnoticed.
func body[T any](r *http.Request) (v T, err error) {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	err = dec.Decode(&v)
	if err == nil && dec.More() {
		err = errors.New("more than one value")
	}
	if err != nil {
		return v, fmt.Errorf("%w: body: %s", errInvalid, bodyProblem(err))
	}
	return v, nil
}

// bodyProblem is a decoder's error without Go's own terms.
func bodyProblem(err error) string {
	var typed *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	var large *http.MaxBytesError
	switch {
	case errors.Is(err, io.EOF):
		return "empty: want JSON"
	case errors.As(err, &large):
		return fmt.Sprintf("larger than %d bytes", maxBody)
	case errors.As(err, &typed):
		return fmt.Sprintf("%s: a %s where that is not possible", typed.Field, typed.Value)
	case errors.As(err, &syntax):
		return fmt.Sprintf("no JSON, at byte %d: %v", syntax.Offset, err)
	}
	return strings.TrimPrefix(err.Error(), "json: ")
}
