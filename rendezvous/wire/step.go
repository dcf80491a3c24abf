package wire

import "net/netip"

// StepKind says what a side of an attempt did or saw.
type StepKind string

// Step kinds, in the order in which a successful attempt passes them.
const (
	StepStart     StepKind = "start"     // the wait for the other side is over
	StepOpeners   StepKind = "openers"   // low-TTL openers sent
	StepPorts     StepKind = "ports"     // many ports opened
	StepSearch    StepKind = "search"    // the search for one of them began
	StepCheck     StepKind = "check"     // the first connectivity check of a candidate pair sent
	StepHeard     StepKind = "heard"     // the first packet of the peer came in
	StepHit       StepKind = "hit"       // a search found a port
	StepNominated StepKind = "nominated" // RFC 8445 section 8.1
	StepLoaded    StepKind = "loaded"    // charon has the connection
	StepIKE       StepKind = "ike"       // the IKE SA stands
	StepChild     StepKind = "child"     // the CHILD SAs are installed
	StepBytes     StepKind = "bytes"     // bytes came through the tunnel
	StepFailed    StepKind = "failed"    // and why, in Text
)

// MaxSteps is how many steps one report may carry.
const MaxSteps = 32

// Step is a moment of an attempt as one side saw it.
type Step struct {
	// AtMs is the time since the order was received, in milliseconds.
	AtMs int64    `json:"atMs"`
	Kind StepKind `json:"kind"`
	// Remote is the address it concerns, if it concerns one.
	Remote netip.AddrPort `json:"remote,omitzero"`
	// Count is how many packets or ports, if that is more than one.
	Count int    `json:"count,omitempty"`
	Text  string `json:"text,omitempty"`
}

func validateSteps(steps []Step) error {
	if len(steps) > MaxSteps {
		return invalid("%d steps, limit %d", len(steps), MaxSteps)
	}
	for _, s := range steps {
		if s.AtMs < 0 || s.Count < 0 || len(s.Kind) > 32 || !plainZone(s.Remote.Addr()) {
			return invalid("step %.32q at %d ms, count %d", s.Kind, s.AtMs, s.Count)
		}
		if err := validateText("step", s.Text); err != nil {
			return err
		}
	}
	return nil
}
