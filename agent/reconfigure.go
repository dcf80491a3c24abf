package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/bodkin-net/bodkin/internal/yamlfile"
	"github.com/bodkin-net/bodkin/punch/portmap"
)

// errReconfigured is why a session ends whose hello says what is no longer so.
var errReconfigured = errors.New("the configuration has changed")

// Reconfigure has the agent take on what of a configuration it can while it runs,
// and log what has changed. An error says that it is wrong somewhere, and nothing
// has changed then. Any goroutine may call it; ctx is Run's, or lives as long.
func (d *Daemon) Reconfigure(ctx context.Context, file Config) error {
	if err := file.check(); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if _, err := file.Endpoint.resolve(d.id.credentials().leaf); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return d.inDaemon(ctx, func() { d.reconfigure(ctx, file) })
}

// adopt takes on what of a configuration can be without a restart. These keys are
// the daemon's goroutine's alone; others may read the rest meanwhile.
func (cfg *Config) adopt(file Config) {
	cfg.Punch = file.Punch
	cfg.Probe = file.Probe
	cfg.PortMapping = file.PortMapping
	cfg.Metered = file.Metered
	cfg.Renew = file.Renew
	cfg.TeardownOnExit = file.TeardownOnExit
	cfg.LogLevel = file.LogLevel
}

// reconfigure takes a configuration on. Tunnels that stand go on as they are: what
// is new counts for the next ones.
func (d *Daemon) reconfigure(ctx context.Context, file Config) {
	was := d.cfg
	d.cfg.adopt(file)
	yamlfile.LogChanges(d.log, was, d.cfg, file)
	if was.PortMapping != d.cfg.PortMapping && d.portMapping != nil { // nil before there is an address
		d.portMapping.stop()
		d.mappingEvent(portmap.Mapping{})
		d.portMapping = d.watchPortMapping(ctx)
	}
	d.signalling.metered.Store(d.cfg.Metered)
	if d.link != nil && (was.Punch != d.cfg.Punch || was.Metered != d.cfg.Metered) {
		d.link.restart(errReconfigured) // the next hello says so
	}
}
