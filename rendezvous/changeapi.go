package rendezvous

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// AppliedCommunities is the answer to PUT /api/v1/communities.
type AppliedCommunities struct {
	Applied []string `json:"applied"`
}

// auditListed is how many entries GET /api/v1/audit gives unless told otherwise.
const auditListed = 100

// changeRoutes are what changes something but nodes, and who did.
func (s *Server) changeRoutes() []route {
	return []route{
		{"POST", "/api/v1/pairs/{a}/{b}/punch", access.Admin, "Try a pair now that is not direct.",
			s.postPunch, nil, PunchOrder{}},
		{"PUT", "/api/v1/communities", access.Admin, "Apply the communities sent, as FabEdge's YAML: all of them, or on error none.",
			s.putCommunities, communityBody{}, AppliedCommunities{}},
		{"DELETE", "/api/v1/communities/{name}", access.Admin, "Remove a community that was applied.",
			func(r *http.Request) (any, error) { return nil, s.deleteCommunity(r.Context(), r.PathValue("name")) }, nil, nil},
		{"GET", "/api/v1/access", access.Admin, "List the credentials, without their secrets.",
			s.getAccess, nil, CredentialList{}},
		{"POST", "/api/v1/access", access.Admin, "Create a credential; the answer holds its token this once.",
			s.postAccess, NewCredential{}, CreatedCredential{}},
		{"DELETE", "/api/v1/access/{name}", access.Admin, "Delete a credential: its logins end, and the operator's certificates of that name are revoked.",
			s.deleteAccess, nil, nil},
		{"POST", "/api/v1/access/{name}/certificate", access.Admin, "Sign an operator's certificate.",
			s.postOperator, CertificateRequest{}, OperatorCertificate{}},
		{"GET", "/api/v1/audit", access.Admin, "Who changed what, newest first.",
			s.getAudit, nil, AuditList{}},
	}
}

// change does f in the store, together with an entry of who asked for it, and
// tells whoever watches.
func (s *Server) change(ctx context.Context, action, object string, f func(*store.Audit, *store.Tx) error) error {
	caller := access.CallerOf(ctx)
	if caller.Who == "" {
		caller = access.Rendezvous
	}
	now := time.Now()
	a := &store.Audit{At: now, Who: caller.Who, From: caller.From, Action: action, Object: object}
	if err := s.store.Change(a, func(tx *store.Tx) error { return f(a, tx) }); err != nil {
		return err
	}
	s.log.Info("changed", "who", a.Who, "from", a.From, "action", a.Action, "object", a.Object, "detail", a.Detail)
	e := EventView{Kind: EventChange, Text: wire.Clip(strings.TrimSpace(a.Who + ": " + a.Action + " " + a.Object + " " + a.Detail))}
	if strings.HasSuffix(action, " community") || strings.HasSuffix(action, " communities") {
		e.Kind = EventCommunity
	}
	s.events.add(now, e)
	return nil
}

// postPunch has a pair tried at once.
func (s *Server) postPunch(r *http.Request) (any, error) {
	id := wire.NewPairID(r.PathValue("a"), r.PathValue("b"))
	order := PunchOrder{After: s.events.lastID()}
	c := s.hub.coordinator
	var failed error
	err := s.hub.call(r.Context(), func(time.Time) []action {
		if p := c.pairs[id]; p == nil {
			failed = s.noPair(id)
		} else if why := c.cannotPunch(p); why != "" {
			failed = fmt.Errorf("%w: %s", ErrConflict, why)
		}
		return nil
	})
	if err := errors.Join(err, failed); err != nil {
		return nil, err
	}
	if err := s.change(r.Context(), "punch pair", string(id), func(*store.Audit, *store.Tx) error { return nil }); err != nil {
		return nil, err
	}
	err = s.hub.call(r.Context(), func(now time.Time) []action {
		actions := c.Retry(now, id)
		if p := c.pairs[id]; p == nil {
			failed = s.noPair(id) // since a moment ago
		} else {
			order.Pair = c.view(p).inUTC()
		}
		return actions
	})
	return order, errors.Join(err, failed)
}

func (s *Server) putCommunities(r *http.Request) (any, error) {
	names, err := s.applyCommunities(r.Context(), cmp.Or(r.URL.Query().Get("file"), "api"), r.Body)
	return AppliedCommunities{Applied: names}, err
}

// credentialName is what one may be called: it is part of paths and logs.
var credentialName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._@-]{0,62}$`)

func checkCredential(name string, role access.Role) error {
	if !credentialName.MatchString(name) {
		return fmt.Errorf("%w: name: %s: want up to 63 letters, digits and . _ @ -, the first a letter or digit", errInvalid, quote(name))
	}
	if role != access.Viewer && role != access.Admin {
		return fmt.Errorf("%w: role: %s: want %s or %s", errInvalid, quote(string(role)), access.Viewer, access.Admin)
	}
	return nil
}

func (s *Server) credentials() (list []store.Credential, err error) {
	err = s.store.View("credentials", func(tx *store.Tx) error {
		list, err = tx.Credentials()
		return err
	})
	return list, err
}

func viewOfCredential(c store.Credential) CredentialView {
	return CredentialView{Name: c.Name, Role: access.Role(c.Role), Created: c.Created, Expires: c.Expires, By: c.By}
}

func (s *Server) getAccess(*http.Request) (any, error) {
	all, err := s.credentials()
	list := CredentialList{At: time.Now().UTC(), Credentials: []CredentialView{}}
	for _, c := range all {
		list.Credentials = append(list.Credentials, viewOfCredential(c))
	}
	return list, err
}

func (s *Server) postAccess(r *http.Request) (any, error) {
	spec, err := body[NewCredential](r)
	if err != nil {
		return nil, err
	}
	if err := checkCredential(spec.Name, spec.Role); err != nil {
		return nil, err
	}
	if spec.TTLSeconds < 0 {
		return nil, fmt.Errorf("%w: ttlSeconds: %d: want how long it is good, 0 for ever", errInvalid, spec.TTLSeconds)
	}
	token, hash := access.NewToken()
	now := time.Now().UTC()
	c := store.Credential{Name: spec.Name, Role: string(spec.Role), SecretSHA256: hash, Created: now, By: access.CallerOf(r.Context()).Who}
	if spec.TTLSeconds > 0 {
		c.Expires = now.Add(seconds(spec.TTLSeconds))
	}
	err = s.change(r.Context(), "create credential", c.Name, func(a *store.Audit, tx *store.Tx) error {
		if _, err := tx.Credential(c.Name); !errors.Is(err, store.ErrNotFound) {
			return cmp.Or(err, fmt.Errorf("%w: credential %s is there already: delete it first", ErrConflict, c.Name))
		}
		a.Detail = "role " + c.Role
		if !c.Expires.IsZero() {
			a.Detail += ", until " + c.Expires.Format(time.RFC3339)
		}
		return tx.PutCredential(c)
	})
	if err != nil {
		return nil, err
	}
	return CreatedCredential{CredentialView: viewOfCredential(c), Token: token}, nil
}

func (s *Server) getAudit(r *http.Request) (any, error) {
	limit, err := limitOfQuery(r, auditListed)
	if err != nil {
		return nil, err
	}
	list := AuditList{At: time.Now().UTC(), Entries: []store.Audit{}}
	entries, err := s.store.Audits(limit)
	list.Entries = append(list.Entries, entries...)
	return list, err
}
