package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

const (
	// StreamEvery is the spacing of a stream's pings, and with it the resolution
	// of an interruption.
	StreamEvery = 20 * time.Millisecond
	// lastAnswer is how long a stream waits for answers after its last ping:
	// longer than any delay of a lab's links, and than charon is busy at a stretch.
	lastAnswer = 2 * time.Second
	// decided is how old a ping is that is looked at while others are under way.
	decided = 500 * time.Millisecond
	// streamBytes makes a stream's pings longer than all else that charon sends
	// as ESP.
	streamBytes = 400
)

// streamIDs tells the streams of one process apart.
var streamIDs atomic.Uint32

// Stream is pings from one address to another, one each StreamEvery, until it is
// stopped.
type Stream struct {
	to      netip.Addr
	conn    *icmp.PacketConn
	id      int
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu    sync.Mutex
	ended bool // no more are sent
	echos Timeline
}

// Echo is one ping and when it was answered, the zero Time for not at all.
type Echo struct{ Sent, Answered time.Time }

// Timeline is a stream's pings in the order they were sent.
type Timeline []Echo

// StartStream starts a stream from the node's pod to another's.
func (n *Node) StartStream(ctx context.Context, to *Node) (*Stream, error) {
	return StartStream(ctx, n.Host, n.Pod, to.Pod)
}

// StartStream starts a stream from one of a host's addresses. Stop must be
// called.
func StartStream(ctx context.Context, h *lab.Host, from, to netip.Addr) (*Stream, error) {
	s := &Stream{to: to, id: int(streamIDs.Add(1) & 0xffff)}
	err := h.Exec(func() (err error) {
		s.conn, err = icmp.ListenPacket("ip4:icmp", from.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("stream from %s to %s: %w", from, to, err)
	}
	ctx, s.cancel = context.WithCancel(ctx)
	s.running.Go(func() { s.send(ctx) })
	s.running.Go(s.receive)
	return s, nil
}

// send also ends the receiver. What cannot be sent is lost.
func (s *Stream) send(ctx context.Context) {
	ticker := time.NewTicker(StreamEvery)
	defer ticker.Stop()
	data := make([]byte, streamBytes)
	for seq := 0; ; seq++ {
		request := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: s.id, Seq: seq & 0xffff, Data: data}}
		s.mu.Lock()
		s.echos = append(s.echos, Echo{Sent: time.Now()})
		s.mu.Unlock()
		if packet, err := request.Marshal(nil); err == nil {
			_, _ = s.conn.WriteTo(packet, &net.IPAddr{IP: s.to.AsSlice()})
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			s.end()
			return
		}
	}
}

// end has the receiver wait for what is not answered yet.
func (s *Stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	deadline := time.Now()
	if s.echos.Lost() > 0 {
		deadline = deadline.Add(lastAnswer)
	}
	_ = s.conn.SetReadDeadline(deadline)
}

func (s *Stream) receive() {
	buf := make([]byte, 2*streamBytes)
	for {
		n, from, err := s.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		at := time.Now()
		message, err := icmp.ParseMessage(ipv4.ICMPTypeEcho.Protocol(), buf[:n])
		if err != nil || message.Type != ipv4.ICMPTypeEchoReply || from.String() != s.to.String() {
			continue
		}
		if echo, ok := message.Body.(*icmp.Echo); ok && echo.ID == s.id {
			if s.answered(echo.Seq, at); s.complete() {
				return
			}
		}
	}
}

// answered takes seq for that of the last ping it can be of: a stream of more
// than 65,536 pings, some 22 minutes, comes round.
func (s *Stream) answered(seq int, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := len(s.echos) - 1
	i := last - (last-seq)&0xffff
	if i >= 0 && s.echos[i].Answered.IsZero() {
		s.echos[i].Answered = at
	}
}

// complete: the last answer has come.
func (s *Stream) complete() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended && s.echos.Lost() == 0
}

// Stop waits for the last answers and returns all pings.
func (s *Stream) Stop() Timeline {
	s.cancel()
	s.running.Wait()
	s.conn.Close()
	return s.echos
}

// Since is the pings sent at or after a moment, so far.
func (s *Stream) Since(at time.Time) Timeline {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.echos.since(at))
}

// Decided is the same without those that may still be answered.
func (s *Stream) Decided(at time.Time) Timeline {
	latest := time.Now().Add(-decided)
	t := s.Since(at)
	for len(t) > 0 && t[len(t)-1].Sent.After(latest) {
		t = t[:len(t)-1]
	}
	return t
}

func (t Timeline) since(at time.Time) Timeline {
	for i, e := range t {
		if !e.Sent.Before(at) {
			return t[i:]
		}
	}
	return nil
}

// Lost counts pings without an answer.
func (t Timeline) Lost() int {
	lost := 0
	for _, e := range t {
		if e.Answered.IsZero() {
			lost++
		}
	}
	return lost
}

// interruption is a row of lost pings: from when the first was sent until the
// next was that got through, or until the last of all.
type interruption struct{ from, to time.Time }

func (i interruption) length() time.Duration { return i.to.Sub(i.from) }

func (t Timeline) interruptions() []interruption {
	var all []interruption
	open := false
	for _, e := range t {
		switch lost := e.Answered.IsZero(); {
		case lost && !open:
			all = append(all, interruption{e.Sent, e.Sent.Add(StreamEvery)})
			open = true
		case lost:
			all[len(all)-1].to = e.Sent.Add(StreamEvery)
		case open:
			all[len(all)-1].to = e.Sent
			open = false
		}
	}
	return all
}

// Longest is the longest interruption, 0 if no ping was lost.
func (t Timeline) Longest() time.Duration {
	var longest time.Duration
	for _, i := range t.interruptions() {
		longest = max(longest, i.length())
	}
	return longest
}

// Interrupted is all interruptions together.
func (t Timeline) Interrupted() time.Duration {
	var sum time.Duration
	for _, i := range t.interruptions() {
		sum += i.length()
	}
	return sum
}

// Mended is when the last interruption ended, the zero Time if there was none.
func (t Timeline) Mended() time.Time {
	all := t.interruptions()
	if len(all) == 0 {
		return time.Time{}
	}
	return all[len(all)-1].to
}

// ways records which way the pings of streams between two nodes take, from what
// crosses the internet.
type ways struct {
	mu      sync.Mutex
	direct  [2]time.Time // when one last went each way without the connector
	relayed time.Time    // when one last went to or from it
	stop    func()
}

// watchWays looks until stop. A lab has one trace at a time.
func (c *Cluster) watchWays(a, b *Node) *ways {
	w := new(ways)
	from, to, relay := a.Outside().Name(), b.Outside().Name(), c.Connector.Outside().Name()
	w.stop = c.Trace(func(p lab.Packet) {
		if p.Fate != lab.Delivered || p.Length < streamBytes || p.What != "ESP in UDP" && p.What != "ESP" {
			return
		}
		now := time.Now()
		w.mu.Lock()
		defer w.mu.Unlock()
		switch {
		case p.From == from && p.To == to:
			w.direct[0] = now
		case p.From == to && p.To == from:
			w.direct[1] = now
		case p.From == relay || p.To == relay:
			w.relayed = now
		}
	})
	return w
}

// last returns when pings last went both ways directly, and over the connector.
func (w *ways) last() (direct, relayed time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.direct[0].Before(w.direct[1]) {
		return w.direct[0], w.relayed
	}
	return w.direct[1], w.relayed
}
