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
// makes the service worthless as an amplifier.
const stunPlainGrowth = 24

// Bits of CHANGE-REQUEST (RFC 5780 Section 7.2).
const (
	changeIP   = 0x4
	changePort = 0x2
)

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
	raw           []byte
	src, local    netip.AddrPort // unmapped
	alternatePort uint16         // port of the answering-only socket
	at            time.Time
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
	outcome       stunOutcome
	response      []byte
	fromAlternate bool // send the response from the answering-only socket
	observation   *Observation
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
	var username string
	if hasUsername && hasIntegrity {
		username, res.integrity, ok = a.authenticate(req)
		if !ok {
			return stunVerdict{outcome: stunUnauthorised, response: res.failure(stun.CodeUnauthorized)}
		}
	}
	authenticated := res.integrity != nil
	if unknown := unknownSTUNAttributes(req, authenticated); len(unknown) > 0 {
		return stunVerdict{outcome: stunRefused, response: res.failure(stun.CodeUnknownAttribute, unknown)}
	}
	if hasUsername != hasIntegrity {
		return stunVerdict{outcome: stunRefused, response: res.failure(stun.CodeBadRequest)}
	}
	mapped := &stun.XORMappedAddress{IP: r.src.Addr().AsSlice(), Port: int(r.src.Port())}
	if !authenticated {
		return stunVerdict{outcome: stunPlain, response: res.success(mapped)}
	}

	v := stunVerdict{outcome: stunAuthenticated, observation: &Observation{
		Username: username,
		Addr:     r.src,
		Local:    r.local,
		At:       r.at,
		Means:    "stun:" + strconv.Itoa(int(r.local.Port())),
	}}
	change, asked, ok := changeRequest(req)
	switch {
	case !ok:
		return stunVerdict{outcome: stunRefused, response: res.failure(stun.CodeBadRequest)}
	case change&changeIP != 0: // there is no second address to answer from
		return stunVerdict{outcome: stunRefused, response: res.failure(stun.CodeUnknownAttribute,
			stun.UnknownAttributes{stun.AttrChangeRequest})}
	case !asked:
		v.response = res.success(mapped)
		return v
	}
	origin := &stun.ResponseOrigin{IP: r.local.Addr().AsSlice(), Port: int(r.local.Port())}
	if change&changePort != 0 {
		v.fromAlternate = true
		origin.Port = int(r.alternatePort)
	}
	v.response = res.success(mapped, origin)
	return v
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
// request fail with 420. CHANGE-REQUEST is known only to the authenticated:
// it makes the service send from a port that nobody has asked.
// MESSAGE-INTEGRITY-SHA256 is not supported.
func unknownSTUNAttributes(req *stun.Message, authenticated bool) stun.UnknownAttributes {
	var unknown stun.UnknownAttributes
	for _, attr := range req.Attributes {
		switch attr.Type {
		case stun.AttrUsername, stun.AttrMessageIntegrity:
		case stun.AttrMappedAddress, stun.AttrXORMappedAddress, stun.AttrErrorCode,
			stun.AttrUnknownAttributes, stun.AttrRealm, stun.AttrNonce:
			// Known but unexpected in a request: ignored (RFC 8489 Section 6.3).
		case stun.AttrChangeRequest:
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

// changeRequest returns the flags of CHANGE-REQUEST and whether it is there; ok
// is false when it is malformed.
func changeRequest(req *stun.Message) (flags uint32, asked, ok bool) {
	value, err := req.Get(stun.AttrChangeRequest)
	if err != nil {
		return 0, false, true
	}
	if len(value) != 4 {
		return 0, true, false
	}
	return binary.BigEndian.Uint32(value), true, true
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
