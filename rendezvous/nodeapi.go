package rendezvous

import (
	"cmp"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/rendezvous/enrol"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// RevokedNode is the answer to POST /api/v1/nodes/{name}/revoke.
type RevokedNode struct {
	Admission AdmissionView `json:"admission"`
	// Certificates of it are on the list of the revoked. With an existing CA
	// there are none: that CA has to revoke what it has issued.
	Certificates int `json:"certificates"`
}

// nodeRoutes are what changes nodes and tokens.
func (s *Server) nodeRoutes() []route {
	return []route{
		{"PATCH", "/api/v1/nodes/{name}", access.Admin, "Change what holds for a node: its subnets, how far it punches, a note",
			s.patchNode, NodeSettings{}, AdmissionView{}},
		{"POST", "/api/v1/nodes/{name}/approve", access.Admin, "Let a node in that waits for approval",
			s.postApproval, nil, AdmissionView{}},
		{"POST", "/api/v1/nodes/{name}/revoke", access.Admin, "Keep a node out: its session and its tunnels end, its certificates are revoked",
			s.postRevocation, Revocation{}, RevokedNode{}},
		{"DELETE", "/api/v1/nodes/{name}", access.Admin, "Forget a node that is offline or revoked: its name and subnets are free again",
			s.removeNode, nil, nil},
		{"GET", "/api/v1/tokens", access.Admin, "List the join tokens, without their secrets",
			s.getTokens, nil, TokenList{}},
		{"POST", "/api/v1/tokens", access.Admin, "Create a join token; the answer holds it this once",
			s.postToken, NewToken{}, CreatedToken{}},
		{"DELETE", "/api/v1/tokens/{id}", access.Admin, "Delete a join token: nobody joins with it any more",
			s.removeToken, nil, nil},
	}
}

// byOf is whom a request is from, for the audit log.
func byOf(r *http.Request) enrol.By {
	c := access.CallerOf(r.Context())
	return enrol.By{Who: c.Who, From: c.From}
}

func nameIn(r *http.Request) wire.NodeName { return wire.NodeName(r.PathValue("name")) }

func (s *Server) patchNode(r *http.Request) (any, error) {
	settings, err := body[NodeSettings](r)
	if err != nil {
		return nil, err
	}
	err = s.setNode(r.Context(), byOf(r), nameIn(r), enrol.Settings{Subnets: settings.Subnets, Punch: settings.Punch, Note: settings.Note})
	if err != nil {
		return nil, err
	}
	s.changed(r, "settings", "changed what holds for the node")
	return s.admissionView(nameIn(r))
}

func (s *Server) postApproval(r *http.Request) (any, error) {
	if err := s.approveNode(r.Context(), byOf(r), nameIn(r)); err != nil {
		return nil, err
	}
	s.changed(r, string(store.Approved), "approved the node")
	return s.admissionView(nameIn(r))
}

func (s *Server) postRevocation(r *http.Request) (any, error) {
	revocation, err := body[Revocation](r)
	if err != nil {
		return nil, err
	}
	if err := s.revokeNode(r.Context(), byOf(r), nameIn(r), revocation.Reason); err != nil {
		return nil, err
	}
	s.changed(r, string(store.Revoked), "revoked the node: "+revocation.Reason)
	view, err := s.admissionView(nameIn(r))
	if err != nil {
		return nil, err
	}
	certs, err := s.authority.Certificates(r.PathValue("name"))
	return RevokedNode{Admission: view, Certificates: len(certs)}, err
}

func (s *Server) removeNode(r *http.Request) (any, error) {
	if err := s.deleteNode(r.Context(), byOf(r), nameIn(r)); err != nil {
		return nil, err
	}
	s.changed(r, "deleted", "deleted the node")
	return nil, nil
}

// admissionView is what is on record of a node, or what holds without a record.
func (s *Server) admissionView(name wire.NodeName) (AdmissionView, error) {
	m, err := s.authority.Standing(string(name))
	return AdmissionView{
		State: m.State, Since: m.Since, By: m.By, Reason: m.Reason,
		Subnets: m.Subnets, Punch: wire.Policy(m.Punch), Note: m.Note,
	}, err
}

func (s *Server) getTokens(*http.Request) (any, error) {
	tokens, err := s.authority.Tokens()
	list := TokenList{At: time.Now().UTC(), Tokens: []TokenView{}}
	for _, t := range tokens {
		list.Tokens = append(list.Tokens, tokenViewOf(t))
	}
	return list, err
}

func (s *Server) postToken(r *http.Request) (any, error) {
	spec, err := body[NewToken](r)
	if err != nil {
		return nil, err
	}
	wanted := enrol.TokenSpec{
		Name: spec.Name, Subnets: spec.Subnets, Connector: spec.Connector, Replace: spec.Replace,
		TTL: seconds(spec.TTLSeconds), Uses: spec.Uses,
	}
	doubt, err := s.authority.Doubt(wanted)
	if err != nil {
		return nil, err
	}
	token, record, err := s.authority.CreateToken(time.Now(), byOf(r), wanted)
	if err != nil {
		return nil, err
	}
	return CreatedToken{TokenView: tokenViewOf(record), Token: token.String(), URL: s.joinURL(), Warning: doubt}, nil
}

func (s *Server) removeToken(r *http.Request) (any, error) {
	return nil, s.authority.DeleteToken(time.Now(), byOf(r), r.PathValue("id"))
}

func tokenViewOf(t store.Token) TokenView {
	return TokenView{
		ID: t.ID, Name: t.Name, Subnets: t.Subnets, Connector: t.Connector, Replace: t.Replace,
		MaxUses: t.MaxUses, Uses: append([]store.TokenUse{}, t.Uses...), Created: t.Created, Expires: t.Expires, By: t.By,
	}
}

// seconds does not wrap around: what is too long stays too long.
func seconds(n int64) time.Duration {
	const most = int64(1<<63-1) / int64(time.Second)
	return time.Duration(min(max(n, -1), most)) * time.Second
}

// joinURL is where a node joins, as far as the rendezvous knows itself: by its
// certificate, which has to hold what nodes dial. The widest known of its hosts
// is the one.
func (s *Server) joinURL() string {
	hosts := pki.Hosts(s.certs.current.Load().leaf)
	at, ok := s.agents.Addr().(*net.TCPAddr)
	if len(hosts) == 0 || !ok {
		return ""
	}
	host := slices.MinFunc(hosts, func(a, b string) int { return cmp.Compare(narrowness(a), narrowness(b)) })
	return "https://" + net.JoinHostPort(host, strconv.Itoa(at.Port))
}

// narrowness orders hosts by who can reach them: everybody, a network, this
// machine only.
func narrowness(host string) int {
	addr, err := netip.ParseAddr(host)
	switch {
	case host == "localhost" || addr.IsLoopback() || addr.IsLinkLocalUnicast():
		return 2
	case err == nil && addr.IsPrivate() || err != nil && !strings.Contains(host, "."):
		return 1
	}
	return 0
}

// changed tells whoever watches what an operator did to a node.
func (s *Server) changed(r *http.Request, state, text string) {
	s.events.add(time.Now(), EventView{
		Kind: EventNode, Node: nameIn(r), State: state,
		Text: wire.Clip(access.CallerOf(r.Context()).Who + " " + text),
	})
}

var _ enrol.Nodes = (*hub)(nil)
