package agent

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// stepsOfKind bounds how many steps of a kind are kept, so that many candidates do
// not displace how it ended: all kinds together fit into a report.
const stepsOfKind = 6

// steps is what an attempt has done and seen so far, in order of time. Its methods
// may be called from any goroutine.
type steps struct {
	mu    sync.Mutex
	began time.Time
	list  []wire.Step
}

// add notes a step.
func (s *steps) add(step wire.Step) { s.note(step, stepsOfKind) }

// once notes a step unless there is one of its kind.
func (s *steps) once(step wire.Step) { s.note(step, 1) }

func (s *steps) note(step wire.Step, limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	alike := 0
	for _, is := range s.list {
		if is.Kind == step.Kind {
			alike++
		}
	}
	if alike >= limit || len(s.list) >= wire.MaxSteps-1 && step.Kind != wire.StepFailed || len(s.list) >= wire.MaxSteps {
		return
	}
	step.AtMs = max(0, time.Since(s.began).Milliseconds())
	step.Text = shortened(step.Text)
	s.list = append(s.list, step)
}

// seen is punch's word on a candidate pair.
func (s *steps) seen(m punch.Moment, remote netip.AddrPort) {
	switch m {
	case punch.CheckSent:
		s.add(wire.Step{Kind: wire.StepCheck, Remote: remote})
	case punch.CheckHeard:
		s.add(wire.Step{Kind: wire.StepHeard, Remote: remote})
	}
}

// came notes how far charon has come with the tunnel.
func (s *steps) came(p progress) {
	for _, reached := range []struct {
		it   bool
		kind wire.StepKind
	}{{p.ike, wire.StepIKE}, {p.installed, wire.StepChild}, {p.bytes, wire.StepBytes}} {
		if reached.it {
			s.once(wire.Step{Kind: reached.kind})
		}
	}
}

// all are the steps so far.
func (s *steps) all() []wire.Step {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.list)
}
