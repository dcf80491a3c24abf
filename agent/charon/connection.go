package charon

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/strongswan/govici/vici"
)

const (
	anyAddr = "%any"

	// DefaultPort is IKE's port behind NATs, RFC 3947; on it there is no
	// change of port during IKE_AUTH, which a punched mapping would not survive.
	DefaultPort = 4500

	// DefaultDPDDelay is long, because ICE consent watches the path: DPD is
	// what remains when the agent is not running, at some 220 bytes each time.
	DefaultDPDDelay = 60 * time.Second

	// DefaultIKERekey is strongSwan's own.
	DefaultIKERekey = 4 * time.Hour
	// DefaultChildRekey is strongSwan's own.
	DefaultChildRekey = time.Hour
)

// DefaultIKEProposals begins with what FabEdge's tunnels negotiate; the others
// are for peers that were configured by hand.
func DefaultIKEProposals() []string {
	return []string{"aes128-sha256-x25519", "aes256-sha256-x25519", "aes128-sha256-ecp256", "aes128-sha256-modp3072"}
}

// DefaultESPProposals begins with what FabEdge's tunnels negotiate. charon does
// not fall back to the second when its own ESP lacks the first: user-space ESP
// (kernel-libipsec) has AES-GCM only with the gcm or the openssl plugin.
func DefaultESPProposals() []string {
	return []string{"aes128gcm16", "aes256gcm16", "aes128-sha256", "aes256-sha256"}
}

// Connection is a tunnel to one peer as charon shall know it. Fields left zero
// have the defaults said beside them.
type Connection struct {
	Name string // "beijing.edge2"; dots are fine

	LocalAddrs  []string // addresses or "%any"; any
	RemoteAddrs []string // addresses, names or "%any"; any, and then it can only respond
	LocalPort   uint16   // must be a port charon listens on; 4500
	RemotePort  uint16   // 4500

	LocalID  string // a distinguished name: "C=CN, O=fabedge.io, CN=beijing.edge1"
	RemoteID string
	CertPEM  []byte   // the local certificate; its key comes by LoadCredentials
	CAPEMs   [][]byte // who may have signed the peer's certificate; any trusted authority

	Encap bool // ESP in UDP even when no NAT is seen, RFC 3948

	DPDDelay     time.Duration // DefaultDPDDelay
	IKERekey     time.Duration // DefaultIKERekey
	ChildRekey   time.Duration // DefaultChildRekey
	IKEProposals []string      // DefaultIKEProposals
	ESPProposals []string      // DefaultESPProposals

	Children []Child
}

// Child is a CHILD_SA of a connection.
type Child struct {
	Name     string // "beijing.edge2-p2p"
	LocalTS  []netip.Prefix
	RemoteTS []netip.Prefix
	Protocol uint8 // the IP protocol that alone is meant; 0 for all

	// MarkIn is put on what the CHILD_SA has decrypted, and its policy for
	// incoming packets is for those alone: others that its selectors match may
	// come through another CHILD_SA. Zero for none; charon does not use it when
	// ESP is done in user space.
	MarkIn Mark

	// Pass makes it no SA but a policy: what the selectors match is left alone,
	// from Load until Unload. charon has no such policy when ESP is done in user
	// space.
	Pass bool
}

// Mark is a packet mark and which of its bits count.
type Mark struct{ Value, Mask uint32 }

func (m Mark) String() string { return fmt.Sprintf("%#x/%#x", m.Value, m.Mask) }

// Local are the child's selectors on this side, as charon lists them.
func (c Child) Local() []Selector { return c.selectors(c.LocalTS) }

// Remote are the child's selectors on the peer's side, as charon lists them.
func (c Child) Remote() []Selector { return c.selectors(c.RemoteTS) }

func (c Child) selectors(list []netip.Prefix) []Selector {
	out := make([]Selector, len(list))
	for i, p := range list {
		out[i] = Selector(p.String())
		if c.Protocol != 0 {
			out[i] += Selector(fmt.Sprintf("[%d]", c.Protocol))
		}
	}
	return out
}

// message is the argument of VICI's load-conn for the connection.
func (c Connection) message() (*vici.Message, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("%w connection %q: %w", ErrInvalid, c.Name, err)
	}
	children, err := c.children()
	if err != nil {
		return nil, err
	}
	local, remote, err := c.auth()
	if err != nil {
		return nil, fmt.Errorf("connection %q: %w", c.Name, err)
	}
	return section{{c.Name, section{
		{"version", "2"},
		{"local_addrs", orDefault(c.LocalAddrs, anyAddr)},
		{"remote_addrs", orDefault(c.RemoteAddrs, anyAddr)},
		{"local_port", port(c.LocalPort)},
		{"remote_port", port(c.RemotePort)},
		{"encap", yesNo(c.Encap)},
		// The path is ours to choose: charon must not move to addresses that
		// were not punched.
		{"mobike", "no"},
		// A peer that comes again from a new mapping takes the place of its old
		// IKE_SA.
		{"unique", "replace"},
		{"send_cert", "always"},
		{"dpd_delay", span(c.DPDDelay, DefaultDPDDelay)},
		{"rekey_time", span(c.IKERekey, DefaultIKERekey)},
		{"proposals", orDefault(c.IKEProposals, DefaultIKEProposals()...)},
		{"local", local},
		{"remote", remote},
		{"children", children},
	}}}.message()
}

func (c Connection) auth() (local, remote section, err error) {
	local = section{{"auth", "pubkey"}, {"id", c.LocalID}}
	if len(c.CertPEM) > 0 {
		certs, err := certificates("certificate", c.CertPEM)
		if err != nil {
			return nil, nil, err
		}
		local = append(local, entry{"certs", certs[:1]})
	}
	remote = section{{"auth", "pubkey"}, {"id", c.RemoteID}}
	var cas []string
	for _, file := range c.CAPEMs {
		more, err := certificates("CA certificate", file)
		if err != nil {
			return nil, nil, err
		}
		cas = append(cas, more...)
	}
	if len(cas) > 0 {
		remote = append(remote, entry{"cacerts", cas})
	}
	return local, remote, nil
}

func (c Connection) children() (section, error) {
	var children section
	seen := map[string]bool{}
	for _, child := range c.Children {
		if child.Name == "" || seen[child.Name] {
			return nil, fmt.Errorf("%w connection %q: child name %q is empty or given twice", ErrInvalid, c.Name, child.Name)
		}
		if len(child.LocalTS) == 0 || len(child.RemoteTS) == 0 {
			return nil, fmt.Errorf("%w connection %q: child %q needs local and remote traffic selectors", ErrInvalid, c.Name, child.Name)
		}
		seen[child.Name] = true
		children = append(children, entry{child.Name, c.child(child)})
	}
	return children, nil
}

func (c Connection) child(child Child) section {
	s := section{
		{"local_ts", words(child.Local())},
		{"remote_ts", words(child.Remote())},
	}
	if child.Pass {
		return append(s, entry{"mode", "pass"}, entry{"start_action", "trap"})
	}
	if child.MarkIn != (Mark{}) {
		s = append(s, entry{"mark_in", child.MarkIn.String()}, entry{"set_mark_in", child.MarkIn.String()})
	}
	return append(s, section{
		{"mode", "tunnel"},
		{"rekey_time", span(c.ChildRekey, DefaultChildRekey)},
		{"esp_proposals", orDefault(c.ESPProposals, DefaultESPProposals()...)},
		// When to connect, and again after a loss, is decided by the agent.
		{"start_action", "none"},
		{"dpd_action", "clear"},
		{"close_action", "none"},
	}...)
}

// maxName is the longest key VICI can carry.
const maxName = 255

func (c Connection) check() error {
	switch {
	case c.Name == "" || len(c.Name) > maxName:
		return fmt.Errorf("the name must have 1 to %d bytes", maxName)
	case c.LocalID == "" || c.RemoteID == "":
		return fmt.Errorf("local and remote identity are needed, for example C=CN, O=fabedge.io, CN=beijing.edge1")
	case len(c.Children) == 0:
		return fmt.Errorf("it has no children, so nothing could be sent through it")
	}
	return nil
}

func orDefault(list []string, def ...string) []string {
	if len(list) == 0 {
		return def
	}
	return list
}

func port(p uint16) string {
	if p == 0 {
		p = DefaultPort
	}
	return strconv.Itoa(int(p))
}

// span is a time in seconds, rounded up: to charon 0 means never.
func span(d, def time.Duration) string {
	if d <= 0 {
		d = def
	}
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func words(list []Selector) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = string(s)
	}
	return out
}

// ConnectionInfo is a connection as charon lists it. charon does not list
// ports, so a connection's endpoint cannot be read back: load it again instead.
type ConnectionInfo struct {
	Name                    string
	LocalAddrs, RemoteAddrs []string
	LocalID, RemoteID       string
	Children                []ChildInfo
}

// ChildInfo is a child of a ConnectionInfo.
type ChildInfo struct {
	Name              string
	LocalTS, RemoteTS []Selector
}

func parseConnection(name string, m *vici.Message) ConnectionInfo {
	info := ConnectionInfo{
		Name:        name,
		LocalAddrs:  texts(m, "local_addrs"),
		RemoteAddrs: texts(m, "remote_addrs"),
	}
	// Rounds of authentication are numbered; the first names the parties.
	if auth, ok := m.Get("local-1").(*vici.Message); ok {
		info.LocalID = text(auth, "id")
	}
	if auth, ok := m.Get("remote-1").(*vici.Message); ok {
		info.RemoteID = text(auth, "id")
	}
	for child, c := range sections(m, "children") {
		info.Children = append(info.Children, ChildInfo{
			Name:     child,
			LocalTS:  selectors(c, "local-ts"),
			RemoteTS: selectors(c, "remote-ts"),
		})
	}
	return info
}
