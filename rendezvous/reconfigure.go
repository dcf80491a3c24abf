package rendezvous

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/internal/yamlfile"
)

// Reconfigure has the rendezvous take on what of a configuration it can while it
// runs, and log what has changed. An error says that it is wrong somewhere, and
// nothing has changed then. Any goroutine may call it while Run runs.
func (s *Server) Reconfigure(ctx context.Context, file Config) error {
	if err := file.check(); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	// The checks above have parsed all three.
	relaying, _ := file.Relay.parse()
	rules, _ := file.enrolment()
	addrs, _ := file.publicAddrs()
	return s.hub.call(ctx, func(now time.Time) []action {
		was := s.running
		s.running = adopt(was, file)
		yamlfile.LogChanges(s.log, was, s.running, file)
		s.hub.mayConnect = s.running.mayConnect
		s.authority.Reconfigure(rules)
		s.hub.setSTUNAddrs(addrs)
		if len(yamlfile.Diff(was.Relay, file.Relay)) == 0 {
			return nil
		}
		return s.hub.coordinator.Relaying(now, relaying)
	})
}

// adopt is the running configuration with what of another one can be taken on
// without a restart. Sessions that stand go on as they are: connectors, approval
// and publicAddresses count for the next ones, certificateLifetime for the next
// certificates.
func adopt(running, file Config) Config {
	running.PublicAddresses = file.PublicAddresses
	running.Connectors = file.Connectors
	running.Approval = file.Approval
	running.CertificateLifetime = file.CertificateLifetime
	running.Relay = file.Relay
	running.LogLevel = file.LogLevel
	return running
}

// Relaying changes whether and what connectors relay.
func (c *coordinator) Relaying(now time.Time, r relaying) []action {
	c.relaying = r
	c.rejoin(now, slices.Collect(maps.Keys(c.nodes)))
	return c.flush()
}
