package rendezvous

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"time"

	"github.com/pion/stun/v4"
)

// stunPlainGrowth bounds by how many bytes the response to an unauthenticated
// request can be longer than the request: an XOR-MAPPED-ADDRESS of IPv6. It
// makes the service worthless as an amplifier. A client that wants more pads its
// request, with SOFTWARE for one.
const stunPlainGrowth = 24

// Observation is an authenticated Binding request: proof that whoever holds the
// credential of Username is reached at Addr just now. A request copied on the
// wire and sent again from elsewhere proves the same, so an observation is a
// candidate to try, never an identity.
type Observation struct {
	Username string
	Addr     netip.AddrPort // source of the request; IPv4-mapped addresses unmapped
	Local    netip.AddrPort // where the request arrived
	At       time.Time
	Means    string // "stun:" and the port of Local
}

// stunRequest is a packet and the circumstances it came in.
type stunRequest struct {
	raw        []byte
	src, local netip.AddrPort // unmapped
	places     stunPlaces
	socket     int // where in places it arrived
	at         time.Time
}

// stunOutcome is what became of a packet, for the counters.
type stunOutcome int

const (
	stunPlain         stunOutcome = iota // answered, unauthenticated
	stunAuthenticated                    // answered, authenticated
	stunMalformed                        // dropped: not a whole STUN Binding request
	stunRefused                          // 400 or 420
	stunUnauthorised                     // 401
	stunRateLimited                      // dropped
	stunOutcomes                         // how many there are
)

// stunVerdict is what to do about a packet. No response means: drop it.
type stunVerdict struct {
	outcome     stunOutcome
	response    []byte
	to          netip.AddrPort // of the response
	via         int            // the socket to send it from, of stunRequest.places
	observation *Observation
}

// stunAnswerer decides on STUN packets (RFC 8489 Section 6.3.1 with the
// short-term credentials of Section 9.1.3, RFC 5780 Section 6.1). It does no
// I/O and keeps no state.
type stunAnswerer struct {
	credential func(username string) (password string, ok bool)
}

func (a stunAnswerer) handle(r stunRequest) stunVerdict {
	req, ok := decodeSTUN(r.raw)
	if !ok || req.Type != stun.BindingRequest || r.src.Port() == 0 {
		return stunVerdict{outcome: stunMalformed}
	}
	hasUsername, hasIntegrity := req.Contains(stun.AttrUsername), req.Contains(stun.AttrMessageIntegrity)
	res := stunResponse{to: req}
	refuse := func(outcome stunOutcome, code stun.ErrorCode, unknown ...stun.Setter) stunVerdict {
		return stunVerdict{outcome: outcome, response: res.failure(code, unknown...), to: r.src, via: r.socket}
	}
	var username string
	if hasUsername && hasIntegrity {
		if username, res.integrity, ok = a.authenticate(req); !ok {
			return refuse(stunUnauthorised, stun.CodeUnauthorized)
		}
	}
	authenticated := res.integrity != nil
	if unknown := unknownSTUNAttributes(req, authenticated); len(unknown) > 0 {
		return refuse(stunRefused, stun.CodeUnknownAttribute, unknown)
	}
	change, changeOK := changeRequest(req)
	port, portOK := responsePort(req, r.src.Port())
	if hasUsername != hasIntegrity || !changeOK || !portOK {
		return refuse(stunRefused, stun.CodeBadRequest)
	}
	via, ok := r.places.via(r.socket, change)
	if !ok {
		return refuse(stunRefused, stun.CodeUnknownAttribute, stun.UnknownAttributes{stun.AttrChangeRequest})
	}
	v := stunVerdict{outcome: stunPlain, to: netip.AddrPortFrom(r.src.Addr(), port), via: via}
	v.response = r.success(res, via)
	if authenticated {
		v.outcome = stunAuthenticated
		v.observation = &Observation{
			Username: username, Addr: r.src, Local: r.local, At: r.at,
			Means: "stun:" + strconv.Itoa(int(r.local.Port())),
		}
	}
	return v
}

// success builds a success response with XOR-MAPPED-ADDRESS, and with
// RESPONSE-ORIGIN and OTHER-ADDRESS (RFC 5780 Sections 7.3, 7.4) unless it then
// were too long for a stranger.
func (r stunRequest) success(res stunResponse, via int) []byte {
	mapped := &stun.XORMappedAddress{IP: r.src.Addr().AsSlice(), Port: int(r.src.Port())}
	origin := r.places.source(via, r.local)
	other := r.places.source(r.places.other(r.socket), r.local)
	whole := res.success(mapped,
		&stun.ResponseOrigin{IP: origin.Addr().AsSlice(), Port: int(origin.Port())},
		&stun.OtherAddress{IP: other.Addr().AsSlice(), Port: int(other.Port())})
	if res.integrity == nil && len(whole) > len(r.raw)+stunPlainGrowth {
		return res.success(mapped)
	}
	return whole
}

// authenticate returns the user and the key of a request whose
// MESSAGE-INTEGRITY is right.
func (a stunAnswerer) authenticate(req *stun.Message) (string, stun.MessageIntegrity, bool) {
	var username stun.Username
	if err := username.GetFrom(req); err != nil || a.credential == nil {
		return "", nil, false
	}
	password, ok := a.credential(username.String())
	if !ok || password == "" {
		return "", nil, false
	}
	key := stun.NewShortTermIntegrity(password)
	if err := key.Check(req); err != nil {
		return "", nil, false
	}
	return username.String(), key, true
}

// decodeSTUN accepts exactly one whole STUN message, with a right FINGERPRINT
// if it has one.
func decodeSTUN(raw []byte) (*stun.Message, bool) {
	const headerSize = 20
	if len(raw) < headerSize || raw[0]&0xc0 != 0 ||
		int(binary.BigEndian.Uint16(raw[2:])) != len(raw)-headerSize {
		return nil, false
	}
	m := new(stun.Message)
	if err := stun.Decode(raw, m); err != nil {
		return nil, false
	}
	if m.Contains(stun.AttrFingerprint) && stun.Fingerprint.Check(m) != nil {
		return nil, false
	}
	return m, true
}

// unknownSTUNAttributes lists the comprehension-required attributes that make a
// request fail with 420. RESPONSE-PORT is known only to the authenticated: it
// makes the service send to where nobody has asked from.
// MESSAGE-INTEGRITY-SHA256 and PADDING are not supported.
func unknownSTUNAttributes(req *stun.Message, authenticated bool) stun.UnknownAttributes {
	var unknown stun.UnknownAttributes
	for _, attr := range req.Attributes {
		switch attr.Type {
		case stun.AttrUsername, stun.AttrMessageIntegrity, stun.AttrChangeRequest:
		case stun.AttrMappedAddress, stun.AttrXORMappedAddress, stun.AttrErrorCode,
			stun.AttrUnknownAttributes, stun.AttrRealm, stun.AttrNonce:
			// Known but unexpected in a request: ignored (RFC 8489 Section 6.3).
		case stun.AttrResponsePort:
			if !authenticated {
				unknown = append(unknown, attr.Type)
			}
		default:
			if attr.Type.Required() {
				unknown = append(unknown, attr.Type)
			}
		}
	}
	return unknown
}

// stunResponse builds the response to a request: what it is given, then
// MESSAGE-INTEGRITY if there is a key, then FINGERPRINT if the request had one.
type stunResponse struct {
	to        *stun.Message
	integrity stun.MessageIntegrity
}

func (r stunResponse) success(setters ...stun.Setter) []byte {
	return r.build(stun.BindingSuccess, setters...)
}

// failure leaves out the reason phrase: the code says it all, in fewer bytes.
func (r stunResponse) failure(code stun.ErrorCode, setters ...stun.Setter) []byte {
	return r.build(stun.BindingError, append([]stun.Setter{stun.ErrorCodeAttribute{Code: code}}, setters...)...)
}

func (r stunResponse) build(kind stun.MessageType, setters ...stun.Setter) []byte {
	all := append([]stun.Setter{stun.NewTransactionIDSetter(r.to.TransactionID), kind}, setters...)
	if r.integrity != nil {
		all = append(all, r.integrity)
	}
	if r.to.Contains(stun.AttrFingerprint) {
		all = append(all, stun.Fingerprint)
	}
	m := new(stun.Message)
	if err := m.Build(all...); err != nil {
		return nil // an address or a text that no attribute can hold: nothing to say
	}
	return m.Raw
}
