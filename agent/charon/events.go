package charon

import (
	"context"
	"fmt"
	"time"

	"github.com/strongswan/govici/vici"
)

const (
	// eventBuffer is how far a reader of Events may fall behind before it gets
	// EventOverflow. A node with a hundred peers whose tunnels all come up at
	// once makes four events for each.
	eventBuffer = 512

	// rawEventBuffer decouples govici's reader, which drops what does not fit.
	rawEventBuffer = 256
)

// EventKind says what an Event is about.
type EventKind string

// The kinds of events.
const (
	// EventUp: charon is reachable. It knows nothing of what was loaded into
	// the charon before it, so load and list everything.
	EventUp EventKind = "up"
	// EventDown: charon is not reachable; Err says why. Sent once per absence,
	// and also when it was absent from the start.
	EventDown EventKind = "down"
	// EventOverflow: events were lost; list the SAs to know the state.
	EventOverflow EventKind = "overflow"

	EventIKEUp      EventKind = "ike-up"
	EventIKEDown    EventKind = "ike-down"
	EventIKERekey   EventKind = "ike-rekey"  // ID is the new SA's
	EventIKEUpdate  EventKind = "ike-update" // the endpoints changed, e.g. the peer's mapping; those in SA are the new ones
	EventChildUp    EventKind = "child-up"
	EventChildDown  EventKind = "child-down"
	EventChildRekey EventKind = "child-rekey" // ChildID is the new SA's
)

// Event is something that happened in charon. Which fields are set depends on
// its kind: Version on EventUp, Err on EventDown, Name and ID on all that
// concern an IKE_SA, Child and ChildID on those of a CHILD_SA.
type Event struct {
	Kind    EventKind
	Time    time.Time
	Version Version
	Err     error

	Name string // the connection, i.e. the IKE_SA's name
	ID   IKEID
	// SA is the IKE_SA as it was at the event. charon lists in it the CHILD_SAs
	// the event concerns, which for IKE events may be none.
	SA SA

	Child   string // the CHILD_SA's configured name, without its number
	ChildID ChildID
}

// subscriptions are the VICI events listened to.
var subscriptions = []string{"ike-updown", "child-updown", "ike-rekey", "child-rekey", "ike-update"}

// Events delivers what happens in charon, in order. It is closed when Run
// returns. A reader that is too slow loses events of SAs, and is told so by
// one EventOverflow; it never loses an EventUp or EventDown.
func (c *Client) Events() <-chan Event { return c.events }

// watch is the owner of the event session: it keeps one open.
func (c *Client) watch(ctx context.Context) {
	reported := false // the present absence of charon was reported
	for {
		up, err := c.listen(ctx)
		if ctx.Err() != nil {
			return
		}
		if up || !reported {
			c.log.Warn("charon is gone", "socket", c.socket, "err", err)
			if !c.deliver(ctx, Event{Kind: EventDown, Time: time.Now(), Err: err}) {
				return
			}
			reported = true
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(redialInterval):
		}
	}
}

// deliver waits for room: what it sends must not be lost. The reader of a dead
// or idle session may wait; charon never does, because govici keeps reading.
func (c *Client) deliver(ctx context.Context, e Event) bool {
	select {
	case c.events <- e:
		return true
	case <-ctx.Done():
		return false
	}
}

// listen serves one event session until it ends, and says whether it was up.
func (c *Client) listen(ctx context.Context) (up bool, err error) {
	s, err := dialSession(ctx, c.socket, c.timeout)
	if err != nil {
		return false, err
	}
	defer s.close()
	x := &exchange{ctx: ctx, session: s, timeout: c.timeout}
	raw, err := x.subscribe(rawEventBuffer, subscriptions...)
	if err != nil {
		return false, err
	}
	version, err := x.version()
	if err != nil {
		return false, err
	}
	c.log.Info("charon is up", "socket", c.socket, "version", version.Version)
	if !c.deliver(ctx, Event{Kind: EventUp, Time: time.Now(), Version: version}) {
		return true, ctx.Err()
	}
	return true, c.pump(ctx, raw)
}

// pump hands events on until the session ends. It never waits for the reader
// of Events: while there is no room, one EventOverflow stands for all that
// could not be handed on.
func (c *Client) pump(ctx context.Context, raw <-chan vici.Event) error {
	overflow := false
	for {
		var resync chan<- Event
		if overflow {
			resync = c.events
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case resync <- Event{Kind: EventOverflow, Time: time.Now()}:
			overflow = false
		case r, ok := <-raw:
			if !ok {
				return fmt.Errorf("%w: it closed VICI socket %s", ErrUnreachable, c.socket)
			}
			// govici says nothing when it drops an event for want of room, but
			// then raw was full, and is full or one short of it now.
			if len(raw) >= cap(raw)-1 {
				overflow = true
			}
			overflow = !c.handOn(r) || overflow
		}
	}
}

// handOn sends what r says to the reader, if there is room for all of it.
func (c *Client) handOn(r vici.Event) bool {
	events, err := parseEvent(r)
	if err != nil {
		c.log.Warn("charon sent an event that cannot be read", "event", r.Name, "err", err)
		return false
	}
	for _, e := range events {
		select {
		case c.events <- e:
		default:
			return false
		}
	}
	return true
}

// parseEvent turns a VICI event into ours: one per SA it concerns.
func parseEvent(r vici.Event) ([]Event, error) {
	up := text(r.Message, "up") == "yes"
	var events []Event
	for name, ike := range within(r.Message) {
		more, err := parseSAEvent(r.Name, up, name, ike)
		if err != nil {
			return nil, err
		}
		events = append(events, more...)
	}
	if r.Name == "ike-update" {
		// The section holds the endpoints before, the event itself the new ones.
		d := &decoder{m: r.Message}
		for i := range events {
			events[i].SA.Local = d.endpoint("local-host", "local-port")
			events[i].SA.Remote = d.endpoint("remote-host", "remote-port")
		}
		if err := d.err(); err != nil {
			return nil, err
		}
	}
	for i := range events {
		events[i].Time = r.Timestamp
	}
	return events, nil
}

func parseSAEvent(event string, up bool, name string, ike *vici.Message) ([]Event, error) {
	if event == "ike-rekey" {
		// The section holds the old and the new IKE_SA.
		if next, ok := ike.Get("new").(*vici.Message); ok {
			ike = next
		}
	}
	sa, err := parseSA(name, ike)
	if err != nil {
		return nil, err
	}
	base := Event{Name: name, ID: sa.ID, SA: sa}
	switch event {
	case "ike-updown":
		base.Kind = upDown(up, EventIKEUp, EventIKEDown)
	case "ike-rekey":
		base.Kind = EventIKERekey
	case "ike-update":
		base.Kind = EventIKEUpdate
	case "child-updown":
		return childEvents(base, upDown(up, EventChildUp, EventChildDown)), nil
	case "child-rekey":
		return childEvents(base, EventChildRekey), nil
	}
	return []Event{base}, nil
}

func childEvents(base Event, kind EventKind) []Event {
	var events []Event
	for _, child := range base.SA.Children {
		e := base
		e.Kind, e.Child, e.ChildID = kind, child.Name, child.ID
		events = append(events, e)
	}
	return events
}

func upDown(up bool, yes, no EventKind) EventKind {
	if up {
		return yes
	}
	return no
}
