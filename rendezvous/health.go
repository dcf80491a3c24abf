package rendezvous

import (
	"context"
	"time"
)

// Health is how a rendezvous is, in numbers.
type Health struct {
	Online, Nodes int
	Direct, Pairs int
}

// Health asks the hub's goroutine: an answer says that it is not stuck, too. Any
// goroutine may ask while Run runs.
func (s *Server) Health(ctx context.Context) (Health, error) {
	var h Health
	err := s.hub.call(ctx, func(time.Time) []action {
		h = Health{Online: len(s.hub.sessions), Nodes: len(s.hub.details), Pairs: len(s.hub.coordinator.sorted)}
		for _, p := range s.hub.coordinator.sorted {
			if p.state == Direct {
				h.Direct++
			}
		}
		return nil
	})
	return h, err
}
