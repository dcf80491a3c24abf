package wire

import "encoding/json"

// Question is what a rendezvous may ask an agent, on behalf of an operator.
type Question string

// AskSAs asks for charon's SAs; the answer is a list of agent.SA.
const AskSAs Question = "sas"

// Ask has an agent answer a question. It is sent only to agents that say in their
// hello that they answer; others would end the session at it.
type Ask struct {
	ID       string   `json:"id"`
	Question Question `json:"question"`
}

// Reply answers the Ask of that ID.
type Reply struct {
	ID string `json:"id"`
	// Body is the answer, absent when Error says why there is none.
	Body  json.RawMessage `json:"body,omitempty"`
	Error string          `json:"error,omitempty"`
}

// Revocations is the CRL of the rendezvous' own CA, RFC 5280, in DER: always the
// whole of it. Agents give it to charon and keep it for charon's next start.
type Revocations struct {
	CRL []byte `json:"crl"`
}

// MaxCRL is the largest CRL accepted, in bytes: some ten thousand certificates.
const MaxCRL = MaxFrame / 2

// Type implements Message.
func (*Ask) Type() string { return "ask" }

// Type implements Message.
func (*Reply) Type() string { return "reply" }

// Type implements Message.
func (*Revocations) Type() string { return "revocations" }

// Validate implements Message. A question that is not known is answered with an
// error, so that the session goes on.
func (a *Ask) Validate() error {
	if a.ID == "" || len(a.ID) > 64 || len(a.Question) > 64 {
		return invalid("ask %.64q of id %.64q", a.Question, a.ID)
	}
	return nil
}

// Validate implements Message.
func (r *Reply) Validate() error {
	if r.ID == "" || len(r.ID) > 64 {
		return invalid("reply to id %.64q", r.ID)
	}
	return validateText("error", r.Error)
}

// Validate implements Message.
func (r *Revocations) Validate() error {
	if len(r.CRL) == 0 || len(r.CRL) > MaxCRL {
		return invalid("crl of %d bytes: want 1 to %d", len(r.CRL), MaxCRL)
	}
	return nil
}
