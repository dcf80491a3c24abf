package rendezvous

import (
	"net/http"
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// route is one operation of the API. The tables of routes are what the server
// serves, what the OpenAPI description is held against, and what decides who may.
type route struct {
	method, pattern string // as http.ServeMux has them
	role            access.Role
	summary         string
	handle          func(*http.Request) (answer any, err error)
	// request and answer are values of the types that go in and out as JSON, nil
	// for none. A nil answer is 204.
	request, answer any
}

// Overview is the answer to GET /api/v1/overview.
type Overview struct {
	At      time.Time `json:"at"`
	Version string    `json:"version"`
	Since   time.Time `json:"since"` // the rendezvous' start
	// Problem: it is not ready, and why. Trouble: what it should not be left with.
	Problem string     `json:"problem,omitempty"`
	Trouble string     `json:"trouble,omitempty"`
	Nodes   NodeCounts `json:"nodes"`
	Pairs   PairCounts `json:"pairs"`
	// Reasons are why pairs are not direct, the most frequent first.
	Reasons []ReasonCount `json:"reasons"`
	// Hours are the last 24, oldest first, hours without attempts among them.
	Hours []HourView `json:"hours"`
	// SuccessRate is direct out of all attempts that Hours count, 0 to 1; absent
	// when there are none.
	SuccessRate *float64 `json:"successRate,omitempty"`
	// TimeToDirect is of the last 24 hours.
	TimeToDirect Distribution `json:"timeToDirect"`
}

// NodeCounts counts nodes. Pending and Revoked are of those that are not let in.
type NodeCounts struct {
	Total   int `json:"total"`
	Online  int `json:"online"`
	Pending int `json:"pending"`
	Revoked int `json:"revoked"`
}

// PairCounts counts pairs by state. Punching are those of the others that are
// being tried.
type PairCounts struct {
	Total    int `json:"total"`
	Direct   int `json:"direct"`
	Relayed  int `json:"relayed"`
	Down     int `json:"down"`
	Punching int `json:"punching"`
}

// ReasonCount is how many pairs are in a state for a reason.
type ReasonCount struct {
	State  State  `json:"state"`
	Reason string `json:"reason"`
	Pairs  int    `json:"pairs"`
}

// HourView is what came of the attempts that ended in one hour. Of those that no
// path was expected of (AttemptView.Hopeless) only such count as found one.
type HourView struct {
	Start  time.Time `json:"start"`
	Direct int       `json:"direct"`
	Failed int       `json:"failed"`
}

// Distribution is a histogram of times to direct.
type Distribution struct {
	// LeMs are the buckets' upper bounds in milliseconds; Counts has one more, for
	// all that took longer. Counts are of each bucket by itself.
	LeMs   []int `json:"leMs"`
	Counts []int `json:"counts"`
	// MedianMs and P95Ms are the upper bounds of the buckets they fall into, 0
	// without any.
	MedianMs int `json:"medianMs"`
	P95Ms    int `json:"p95Ms"`
}

// Matrix is the answer to GET /api/v1/matrix: every pair's state in one
// character, for a page with tens of thousands of them.
type Matrix struct {
	At    time.Time       `json:"at"`
	Nodes []wire.NodeName `json:"nodes"` // sorted
	// Online has a '1' for each node that is, else '0'.
	Online string `json:"online"`
	// Rows[i] has i characters, for the pairs of node i with the nodes before it:
	// 'd' direct, 'r' relayed, 'x' down, '.' no pair; 'R' and 'X' while punching.
	Rows []string `json:"rows"`
}

// NodeDetail is the answer to GET /api/v1/nodes/{name}.
type NodeDetail struct {
	NodeHistory
	Admission AdmissionView `json:"admission"`
	// Certificates are those issued to it by the rendezvous' own CA.
	Certificates []store.Certificate `json:"certificates"`
	Pairs        PairCounts          `json:"pairs"`
}

// AdmissionView is what operators have said about a node. With an existing CA and
// automatic approval nobody needs to say anything: its state is approved.
type AdmissionView struct {
	State   store.AdmissionState `json:"state"`
	Since   time.Time            `json:"since,omitzero"`
	By      string               `json:"by,omitempty"`
	Reason  string               `json:"reason,omitempty"`
	Subnets []string             `json:"subnets,omitempty"`
	Punch   wire.Policy          `json:"punch,omitempty"`
	Note    string               `json:"note,omitempty"`
}

// NodeSettings is the body of PATCH /api/v1/nodes/{name}: what is absent stays.
type NodeSettings struct {
	Subnets *[]string    `json:"subnets,omitempty"`
	Punch   *wire.Policy `json:"punch,omitempty"`
	Note    *string      `json:"note,omitempty"`
}

// Revocation is the body of POST /api/v1/nodes/{name}/revoke.
type Revocation struct {
	Reason string `json:"reason"`
}

// PairDetail is the answer to GET /api/v1/pairs/{a}/{b}.
type PairDetail struct {
	At   time.Time `json:"at"`
	Pair PairView  `json:"pair"`
	// Attempts are the last ones, newest first; the first may not have ended.
	Attempts []AttemptView `json:"attempts"`
}

// AttemptOutcome says how an attempt ended.
type AttemptOutcome string

// Attempt outcomes.
const (
	AttemptRunning   AttemptOutcome = "running"
	AttemptDirect    AttemptOutcome = "direct"
	AttemptFailed    AttemptOutcome = "failed"
	AttemptCancelled AttemptOutcome = "cancelled"
)

// AttemptView is one punch of a pair as both sides have told it.
type AttemptView struct {
	ID       wire.AttemptID `json:"id"`
	Pair     wire.PairID    `json:"pair"`
	At       time.Time      `json:"at"` // ordered
	Strategy nat.Strategy   `json:"strategy"`
	Hopeless string         `json:"hopeless,omitempty"`
	// Verdict is what was expected then.
	Verdict VerdictView    `json:"verdict"`
	Outcome AttemptOutcome `json:"outcome"`
	Reason  string         `json:"reason,omitempty"`
	// ElapsedMs is from the order until the attempt ended at the rendezvous, in
	// milliseconds.
	ElapsedMs int64                          `json:"elapsedMs"`
	Sides     map[wire.NodeName]*AttemptSide `json:"sides"`
}

// AttemptSide is one node's part in an attempt.
type AttemptSide struct {
	Role wire.Role      `json:"role"`
	Part wire.ProbePart `json:"part,omitempty"`
	// Candidates are this node's, as its peer was given them, in order.
	Candidates []wire.Candidate `json:"candidates"`
	NAT        wire.NAT         `json:"nat"`
	// OffsetMs is when its order reached the node after the attempt's At, by half
	// of the session's round trip; Steps count from there. StartAfterMs is the
	// wait that made both sides start together.
	OffsetMs     int64 `json:"offsetMs"`
	StartAfterMs int64 `json:"startAfterMs"`
	// The rest is what the node has reported, absent until it has.
	Outcome   wire.Outcome `json:"outcome,omitempty"`
	Path      wire.Path    `json:"path,omitzero"`
	Reason    string       `json:"reason,omitempty"`
	ElapsedMs int64        `json:"elapsedMs,omitempty"`
	Packets   int          `json:"packets,omitempty"`
	Steps     []wire.Step  `json:"steps,omitempty"`
}

// EventKind says what an event is about.
type EventKind string

// Event kinds.
const (
	EventPair      EventKind = "pair"      // a pair's state or reason changed
	EventAttempt   EventKind = "attempt"   // an attempt was ordered or ended
	EventNode      EventKind = "node"      // a node came or went
	EventAddress   EventKind = "address"   // a node was observed at another address
	EventRefused   EventKind = "refused"   // something was refused of a node
	EventCommunity EventKind = "community" // the communities changed
	EventChange    EventKind = "change"    // somebody changed something else
)

// EventView is one entry of GET /api/v1/events, and the data of each message of
// GET /api/v1/events/stream.
type EventView struct {
	ID    uint64        `json:"id"` // grows
	At    time.Time     `json:"at"`
	Kind  EventKind     `json:"kind"`
	Pair  wire.PairID   `json:"pair,omitempty"`
	Node  wire.NodeName `json:"node,omitempty"`
	State string        `json:"state,omitempty"` // of the pair, node or attempt
	// Cell is the pair's character in Matrix, with EventPair.
	Cell string `json:"cell,omitempty"`
	Text string `json:"text"`
}

// EventList is the answer to GET /api/v1/events, newest first.
type EventList struct {
	At     time.Time   `json:"at"`
	Events []EventView `json:"events"`
}

// NewToken is the body of POST /api/v1/tokens.
type NewToken struct {
	Name      string   `json:"name,omitempty"`
	Subnets   []string `json:"subnets,omitempty"`
	Connector bool     `json:"connector,omitempty"`
	Replace   bool     `json:"replace,omitempty"`
	// TTLSeconds is 12 hours if 0, Uses 1 if 0.
	TTLSeconds int64 `json:"ttlSeconds,omitempty"`
	Uses       int   `json:"uses,omitempty"`
}

// CreatedToken is the answer to it. The token is shown this once.
type CreatedToken struct {
	TokenView
	Token string `json:"token"`
	// URL is where to join, such as https://198.51.100.1:7443; empty if the
	// rendezvous' certificate does not say.
	URL string `json:"url,omitempty"`
	// Warning is why nobody could join with it as things are.
	Warning string `json:"warning,omitempty"`
}

// TokenView is a token without its secret.
type TokenView struct {
	ID        string           `json:"id"`
	Name      string           `json:"name,omitempty"`
	Subnets   []string         `json:"subnets,omitempty"`
	Connector bool             `json:"connector,omitempty"`
	Replace   bool             `json:"replace,omitempty"`
	MaxUses   int              `json:"maxUses"`
	Uses      []store.TokenUse `json:"uses"`
	Created   time.Time        `json:"created"`
	Expires   time.Time        `json:"expires"`
	By        string           `json:"by"`
}

// TokenList is the answer to GET /api/v1/tokens, by creation.
type TokenList struct {
	At     time.Time   `json:"at"`
	Tokens []TokenView `json:"tokens"`
}

// NewCredential is the body of POST /api/v1/access.
type NewCredential struct {
	Name string      `json:"name"`
	Role access.Role `json:"role"`
	// TTLSeconds is forever if 0.
	TTLSeconds int64 `json:"ttlSeconds,omitempty"`
}

// CreatedCredential is the answer to it. The token is shown this once.
type CreatedCredential struct {
	CredentialView
	Token string `json:"token"`
}

// CredentialView is a credential without its secret.
type CredentialView struct {
	Name    string      `json:"name"`
	Role    access.Role `json:"role"`
	Created time.Time   `json:"created"`
	Expires time.Time   `json:"expires,omitzero"`
	By      string      `json:"by"`
}

// CredentialList is the answer to GET /api/v1/access, by name.
type CredentialList struct {
	At          time.Time        `json:"at"`
	Credentials []CredentialView `json:"credentials"`
}

// AuditList is the answer to GET /api/v1/audit, newest first.
type AuditList struct {
	At      time.Time     `json:"at"`
	Entries []store.Audit `json:"entries"`
}

// Identity is the answer to GET /api/v1/whoami.
type Identity struct {
	Who  string      `json:"who"`
	Role access.Role `json:"role"`
}

// PunchOrder is the answer to POST /api/v1/pairs/{a}/{b}/punch.
type PunchOrder struct {
	Pair PairView `json:"pair"`
	// After is the ID of the last event before the order: what follows in
	// /api/v1/events/stream shows it.
	After uint64 `json:"after"`
}
