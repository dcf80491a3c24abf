package e2e

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

const (
	// warmUp is how long pings flow before something breaks: long enough for
	// agents to see that they do.
	warmUp = 2 * time.Second
	// tooLong is when nobody waits any longer for a pair to be direct again.
	tooLong = 90 * time.Second
	// stays is how long a pair must stay relayed to have stayed.
	stays = 6 * time.Second
	// shows is how long a fault may take to show in the pings: charon's and the
	// agents' own packets are seconds apart.
	shows = 4 * time.Second
)

// Fault is one way to break a pair that is direct while pings flow, with what
// it may cost.
type Fault struct {
	Name string
	// NATs are those of the pair, the controlling node's first.
	NATs [2]lab.NATKind
	// Victims are the nodes it is done to in turn, 0 or 1, one in each run.
	Victims []int
	// FromOutside has pings sent to the victim alone: it sends nothing but
	// answers.
	FromOutside bool
	// Before brings the pair into another state than direct; nil for direct.
	Before func(context.Context, *Stage) error
	// Router breaks the router before the victim.
	Router func(*lab.Router) error
	// Break breaks anything else, where Router is nil. It may take its time, and
	// mend again.
	Break func(ctx context.Context, s *Stage, victim int) error
	// Ends waits until all is as it shall be and returns when that was; nil for
	// pings that go directly again. It returns the zero Time where nothing is to
	// be told.
	Ends func(ctx context.Context, s *Stage, victim int, began time.Time) (time.Time, error)
	// InAll counts all interruptions together, not the longest.
	InAll bool
	// MaxLost is the most traffic may be interrupted, MaxDirect the most it may
	// take until Ends; less than 0 for no limit.
	MaxLost, MaxDirect time.Duration
}

// Cost is what a fault did.
type Cost struct {
	// Interrupted is how long pings failed in the worse of the two directions.
	Interrupted time.Duration
	// Lost of Sent pings had no answer.
	Lost, Sent int
	// Direct is how long it took until pings went directly again, or what else
	// the fault waits for; less than 0 where that is not asked.
	Direct time.Duration
	// Problem is what went wrong beside the figures, "" for nothing.
	Problem string
}

// noLimit stands for a figure nobody asks for.
const noLimit time.Duration = -1

// Within reports whether a cost is within the fault's limits.
func (f Fault) Within(c Cost) bool {
	return c.Problem == "" &&
		(f.MaxLost < 0 || c.Interrupted <= f.MaxLost) &&
		(f.MaxDirect < 0 || c.Direct <= f.MaxDirect)
}

// Whom a fault is done to: each side in turn, or to both or neither.
var (
	eitherSide = []int{0, 1}
	once       = []int{0}
)

// Pairs of NATs. What a flush of its conntrack does to a port-preserving NAT is
// mended by the next packet from inside. A symmetric one gives that another
// port, and so does a poisoned one that a packet from the peer reached before.
var (
	homes     = [2]lab.NATKind{lab.PortRestricted, lab.PortRestricted}
	symmetric = [2]lab.NATKind{lab.Symmetric, lab.AddressRestricted}
	poisoned  = [2]lab.NATKind{lab.PortRestrictedPoisoned, lab.PortRestricted}
)

// Faults are all that a pair is tried with.
func Faults() []Fault {
	return []Fault{
		{
			Name: "upgrade relayed→direct", NATs: homes, Victims: once,
			Before:  func(ctx context.Context, s *Stage) error { return s.Relayed(ctx) },
			Break:   func(ctx context.Context, s *Stage, _ int) error { return s.Direct(ctx) },
			MaxLost: 0, MaxDirect: noLimit,
		},
		{
			Name: "planned downgrade", NATs: homes, Victims: once,
			Break: func(ctx context.Context, s *Stage, _ int) error { return s.Relayed(ctx) },
			Ends:  staysRelayed, MaxLost: 0, MaxDirect: noLimit,
		},
		{
			Name: "rendezvous kill -9 and restart", NATs: homes, Victims: once,
			Break: func(ctx context.Context, s *Stage, _ int) error { return s.RestartRendezvous(ctx, nil) },
			Ends:  allBack, MaxLost: 0, MaxDirect: 5 * time.Second,
		},
		{
			Name: "agent kill -9 and restart", NATs: homes, Victims: eitherSide,
			Break: func(ctx context.Context, s *Stage, victim int) error { return s.Nodes[victim].RestartAgent(ctx) },
			Ends:  adopted, MaxLost: 0, MaxDirect: 5 * time.Second,
		},
		{
			Name: "NAT conntrack flushed, port-preserving", NATs: homes, Victims: eitherSide,
			Router: (*lab.Router).ForgetFlows, MaxLost: 2 * time.Second, MaxDirect: 5 * time.Second,
		},
		{
			Name: "NAT conntrack flushed, port-preserving, traffic from outside alone", NATs: homes, Victims: eitherSide,
			FromOutside: true, Router: (*lab.Router).ForgetFlows, MaxLost: 2 * time.Second, MaxDirect: 5 * time.Second,
		},
		{
			// Nobody can undo it before the router forgets the peer's packets,
			// 30 s after the last one: there is no limit for direct again.
			Name: "NAT conntrack flushed, poisoned, traffic from outside alone", NATs: poisoned, Victims: once,
			FromOutside: true, Router: (*lab.Router).ForgetFlows, MaxLost: 2 * time.Second, MaxDirect: noLimit,
		},
		{
			Name: "NAT conntrack flushed, symmetric", NATs: symmetric, Victims: []int{0},
			Router: (*lab.Router).ForgetFlows, MaxLost: 2 * time.Second, MaxDirect: 5 * time.Second,
		},
		{
			Name: "NAT conntrack flushed, symmetric, controlled side", NATs: [2]lab.NATKind{symmetric[1], symmetric[0]}, Victims: []int{1},
			Router: (*lab.Router).ForgetFlows, MaxLost: 2 * time.Second, MaxDirect: 5 * time.Second,
		},
		{
			Name: "public address changed", NATs: homes, Victims: eitherSide,
			Router: readdress, MaxLost: 3 * time.Second, MaxDirect: 6 * time.Second,
		},
		{
			Name: "charon restarted", NATs: homes, Victims: eitherSide,
			Break:   func(_ context.Context, s *Stage, victim int) error { return s.Nodes[victim].RestartCharon() },
			MaxLost: 5 * time.Second, MaxDirect: 8 * time.Second,
		},
		{
			Name: "direct path blocked by a firewall for good", NATs: homes, Victims: once,
			Break: func(_ context.Context, s *Stage, _ int) error { return s.setPath(false) },
			Ends:  staysRelayed, MaxLost: 3 * time.Second, MaxDirect: noLimit,
		},
		{
			Name: "direct path flapping every 5 s for a minute", NATs: homes, Victims: once,
			Break: flap, Ends: nothing, InAll: true, MaxLost: flapping / 10, MaxDirect: noLimit,
		},
	}
}

// readdress is what a provider does at night.
func readdress(r *lab.Router) error { return r.SetPublicAddr(freeAddr) }

func (s *Stage) setPath(open bool) error {
	return s.SetPath(s.Nodes[0].Host, s.Nodes[1].Host, open)
}

const (
	flapEvery = 5 * time.Second
	flapping  = time.Minute
)

// flap breaks and opens the direct path in turn.
func flap(ctx context.Context, s *Stage, _ int) error {
	ticker := time.NewTicker(flapEvery)
	defer ticker.Stop()
	for i := range int(flapping / flapEvery) {
		if err := s.setPath(i%2 == 1); err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return s.setPath(true)
}

func nothing(context.Context, *Stage, int, time.Time) (time.Time, error) { return time.Time{}, nil }

// allBack waits until all agents have a session.
func allBack(ctx context.Context, s *Stage, _ int, _ time.Time) (time.Time, error) {
	err := s.WaitOnline(ctx, s.Connector, s.Nodes[0], s.Nodes[1])
	return time.Now(), err
}

// adopted waits until the agent watches what charon has: the tunnels with its
// peer and with the connector.
func adopted(ctx context.Context, s *Stage, victim int, _ time.Time) (time.Time, error) {
	err := s.WaitAdopted(ctx, s.Nodes[victim], 2)
	return time.Now(), err
}

// errNoReason: whoever looks at a pair that is not direct must learn why.
var errNoReason = errors.New("relayed, and no reason is given")

// staysRelayed waits until the pair is relayed, looks for a reason, and at the
// pair again after a while.
func staysRelayed(ctx context.Context, s *Stage, _ int, _ time.Time) (time.Time, error) {
	if err := s.await(ctx, "relayed"); err != nil {
		return time.Time{}, err
	}
	select {
	case <-time.After(stays):
	case <-ctx.Done():
		return time.Time{}, ctx.Err()
	}
	p, err := s.Pair(ctx, s.Nodes[0], s.Nodes[1])
	switch {
	case err != nil:
		return time.Time{}, err
	case p == nil || p.State != "relayed":
		return time.Time{}, fmt.Errorf("it did not stay relayed: %+v", p)
	case p.Reason == "":
		return time.Time{}, errNoReason
	}
	return time.Time{}, nil
}

// Run breaks a stage once and measures. An error means that it could not be
// measured; what merely went wrong is the cost's.
func (f Fault) Run(ctx context.Context, s *Stage, victim int) (Cost, error) {
	if f.Before != nil {
		if err := f.Before(ctx, s); err != nil {
			return Cost{}, err
		}
	}
	streams, err := f.startStreams(ctx, s, victim)
	defer func() {
		for _, stream := range streams {
			stream.Stop()
		}
	}()
	if err != nil {
		return Cost{}, err
	}
	began := time.Now()
	if err := f.breaks(ctx, s, victim); err != nil {
		return Cost{}, err
	}
	cost, err := f.mended(ctx, s, victim, streams, began)
	if err != nil {
		return Cost{}, err
	}
	if err := sleep(ctx, time.Until(began.Add(shows))); err != nil {
		return Cost{}, err
	}
	for _, stream := range streams {
		cost.Add(stream.Stop().since(began), f.InAll)
	}
	return cost, nil
}

// startStreams returns once pings flow.
func (f Fault) startStreams(ctx context.Context, s *Stage, victim int) (streams []*Stream, err error) {
	for from := range s.Nodes {
		if f.FromOutside && from == victim {
			continue
		}
		stream, err := s.Nodes[from].StartStream(ctx, s.Nodes[1-from])
		if err != nil {
			return streams, err
		}
		streams = append(streams, stream)
	}
	if err := sleep(ctx, warmUp); err != nil {
		return streams, err
	}
	for _, stream := range streams {
		if warm := stream.Since(time.Time{}); warm.Lost() > len(warm)/2 {
			return streams, fmt.Errorf("%d of %d pings fail before anything is broken", warm.Lost(), len(warm))
		}
	}
	return streams, nil
}

// mended waits until all is as it shall be; that it is not in time is a problem
// of the cost's.
func (f Fault) mended(ctx context.Context, s *Stage, victim int, streams []*Stream, began time.Time) (Cost, error) {
	limited, cancel := context.WithTimeout(ctx, tooLong)
	defer cancel()
	var until time.Time
	var err error
	if f.Ends != nil {
		until, err = f.Ends(limited, s, victim, began)
	} else {
		until, err = s.directAgain(limited, streams, began)
	}
	if ctx.Err() != nil {
		return Cost{}, ctx.Err()
	}
	cost := Cost{Direct: noLimit}
	if err != nil {
		cost.Problem = err.Error()
		if f.MaxDirect >= 0 {
			until = time.Now() // later than that
		}
	}
	if !until.IsZero() {
		cost.Direct = max(0, until.Sub(began))
	}
	return cost, nil
}

func (f Fault) breaks(ctx context.Context, s *Stage, victim int) error {
	if f.Router != nil {
		return f.Router(s.Routers[victim])
	}
	return f.Break(ctx, s, victim)
}

// Add takes one direction into account.
func (c *Cost) Add(t Timeline, inAll bool) {
	interrupted := t.Longest()
	if inAll {
		interrupted = t.Interrupted()
	}
	c.Interrupted = max(c.Interrupted, interrupted)
	c.Lost += t.Lost()
	c.Sent += len(t)
}

// directAgain waits until pings go directly both ways, and for a while nowhere
// else and are answered, and returns since when.
func (s *Stage) directAgain(ctx context.Context, streams []*Stream, began time.Time) (time.Time, error) {
	var since time.Time
	err := s.until(ctx, "pings go directly again", func() (bool, error) {
		now := time.Now()
		direct, relayed := s.ways.last()
		since = began
		later := func(t time.Time) {
			if t.After(since) {
				since = t
			}
		}
		later(relayed)
		for _, stream := range streams {
			later(stream.Decided(began).Mended())
		}
		return now.Sub(began) > shows && now.Sub(since) > settled+decided && now.Sub(direct) < settled, nil
	})
	return since, err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
