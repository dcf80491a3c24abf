// Package wire is the protocol between a Bodkin agent and its rendezvous.
//
// It runs over one websocket (RFC 6455) inside TLS with client certificates.
// Each message is one text frame of at most [MaxFrame] bytes holding one JSON
// object:
//
//	{"v":1,"type":"hello","body":{...}}
//
// Order: the rendezvous sends Welcome, the agent answers with Hello; after
// that both send what they have, when they have it. Peers is level-triggered
// (always the complete set), Punch starts an attempt, and everything that
// belongs to an attempt carries its ID so that late messages can be told apart.
//
// Unknown fields inside a body are ignored, so that either side may learn new
// ones first; an unknown type or version is an error, because silence would
// hide that the two sides do not understand each other.
package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// Version is the protocol's version. It changes only when an old peer would
// misunderstand a message.
const Version = 1

// MaxFrame is the largest frame accepted, in bytes. A Peers message of MaxPeers
// peers with two subnets each fits.
const MaxFrame = 1 << 20

// Errors of Decode. All of them mean that the session cannot go on.
var (
	ErrTooLarge = errors.New("frame too large")
	ErrSyntax   = errors.New("frame is not a message")
	ErrVersion  = errors.New("unsupported protocol version")
	ErrType     = errors.New("unknown message type")
	ErrInvalid  = errors.New("invalid message")
)

// Message is one of the protocol's messages: *Hello, *Network, *Prepared,
// *Report, *Usage, *Reply (agent to rendezvous), *Welcome, *Peers, *Forwarding,
// *Prepare, *Punch, *Trickle, *Cancel, *Demote, *Retry, *Revocations, *Ask, *Bye
// (rendezvous to agent).
type Message interface {
	// Type is the frame's "type".
	Type() string
	// Validate reports the first value out of bounds, as an ErrInvalid.
	Validate() error
}

type frame struct {
	Version int             `json:"v"`
	Type    string          `json:"type"`
	Body    json.RawMessage `json:"body"`
}

func newMessage(typ string) Message {
	switch typ {
	case "hello":
		return new(Hello)
	case "network":
		return new(Network)
	case "report":
		return new(Report)
	case "welcome":
		return new(Welcome)
	case "peers":
		return new(Peers)
	case "prepare":
		return new(Prepare)
	case "prepared":
		return new(Prepared)
	case "punch":
		return new(Punch)
	case "trickle":
		return new(Trickle)
	case "cancel":
		return new(Cancel)
	case "retry":
		return new(Retry)
	case "forwarding":
		return new(Forwarding)
	case "demote":
		return new(Demote)
	case "usage":
		return new(Usage)
	case "ask":
		return new(Ask)
	case "reply":
		return new(Reply)
	case "revocations":
		return new(Revocations)
	case "bye":
		return new(Bye)
	}
	return nil
}

// Encode returns m as one frame. It does not validate: a sender's own message
// is checked by its tests, a received one by Decode.
func Encode(m Message) ([]byte, error) {
	body, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.Type(), err)
	}
	// By hand: Marshal would read through the body once more.
	b := fmt.Appendf(make([]byte, 0, len(body)+64), `{"v":%d,"type":%q,"body":`, Version, m.Type())
	b = append(append(b, body...), '}')
	if len(b) > MaxFrame {
		return nil, fmt.Errorf("%w: %s of %d bytes, limit %d", ErrTooLarge, m.Type(), len(b), MaxFrame)
	}
	return b, nil
}

// Decode parses and validates one frame.
func Decode(b []byte) (Message, error) {
	if len(b) > MaxFrame {
		return nil, fmt.Errorf("%w: limit %d bytes", ErrTooLarge, MaxFrame)
	}
	var f frame
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	if f.Version != Version {
		return nil, fmt.Errorf("%w %d: this side speaks %d", ErrVersion, f.Version, Version)
	}
	m := newMessage(f.Type)
	if m == nil {
		return nil, fmt.Errorf("%w %.32q", ErrType, f.Type)
	}
	if len(f.Body) == 0 || bytes.Equal(f.Body, []byte("null")) {
		return nil, fmt.Errorf("%w: %s without a body", ErrSyntax, f.Type)
	}
	if err := json.Unmarshal(f.Body, m); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrSyntax, f.Type, err)
	}
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Type, err)
	}
	return m, nil
}
